"""InternLM 3: Llama under other names in config.json."""

from __future__ import annotations

from ggext.converters.llama import Llama


class InternLM3(Llama):
    defaults = {"rms_norm_eps": 1e-5, "head_dim": 128}


FAMILY = InternLM3
