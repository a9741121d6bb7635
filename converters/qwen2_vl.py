"""Qwen 2 and 2.5 that see too: what concerns text is Qwen 2, its pairs in sections.

The pinned llama.cpp reads no ``attention.layer_norm_rms_epsilon`` for this architecture
(``load_arch_hparams`` of qwen2vl) and computes every norm with 0, whatever a file says. Up to the
1e-6 of the published models that is a KL of some 1e-8 nats in models of the tests' size.
"""

from __future__ import annotations

from ggext.converters.base import text_part_name
from ggext.converters.qwen2 import Qwen2

_LARGEST_EPSILON = 1e-6


class Qwen2Vl(Qwen2):
    arch = "qwen2vl"
    defaults = {"rms_norm_eps": 1e-5}
    free_head_dim = False
    tied_as_part = False
    tied_by_text = True

    def check(self) -> None:
        super().check()
        self.limit_epsilon(_LARGEST_EPSILON, "takes 0 whatever the file says")

    def stored_name(self, name: str) -> str:
        return text_part_name(name)


FAMILY = Qwen2Vl
