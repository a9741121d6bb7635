"""Qwen 3 that sees too: what concerns text is Qwen 3, its pairs in interleaved sections.

The published sections make llama.cpp leave two of 64 pairs still; ``rope.sections`` says which are
written instead. Vision features enter the first layers too, as many as
``vision_config.deepstack_visual_indexes`` names: the file says how many, for the vision file.
"""

from __future__ import annotations

from typing import Any

from ggext.converters.base import text_part_name
from ggext.converters.qwen3 import Qwen3

from ggext.checkpoint.config import Config

_DEEPSTACK = (8, 16, 24)  # of transformers' class


class Qwen3Vl(Qwen3):
    arch = "qwen3vl"
    tied_as_part = False

    def __init__(self, config: Config) -> None:
        self.vision = config.section("vision_config")
        super().__init__(config)

    def check(self) -> None:
        super().check()
        if len(self._deepstack()) >= self.n_layers:
            raise self.refused(
                f"deepstack_visual_indexes names {len(self._deepstack())} "
                f"layers and the text has {self.n_layers}; llama.cpp needs more of them"
            )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {"n_deepstack_layers": len(self._deepstack())}

    def _deepstack(self) -> Any:
        layers = self.vision.get("deepstack_visual_indexes", _DEEPSTACK)
        if not isinstance(layers, (list, tuple)):
            raise self.refused(
                f"deepstack_visual_indexes is {layers!r}; it must be a list of layers"
            )
        return layers

    def stored_name(self, name: str) -> str:
        return text_part_name(name)


FAMILY = Qwen3Vl
