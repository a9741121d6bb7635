"""GLM-5 to 5.2: DeepSeek 3.2's attention to chosen tokens with GLM's sizes; a layer may take the
tokens that the one before it chose.

llama.cpp's glm-dsa multiplies all scores by the square of YaRN's gain, where the models multiply
the rotated part: YaRN is exact with an attention factor of 1, as are NTK-aware bases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, names_each
from ggext.converters.deepseek_v32 import DeepseekV32
from ggext.converters.glm4_moe_lite import Glm4MoeLite

_OWN, _SHARED = "full", "shared"
_LETTERS = {"F": _OWN, "S": _SHARED}


class GlmMoeDsa(DeepseekV32):
    arch = "glm-dsa"
    defaults = DeepseekV32.defaults | {
        "rms_norm_eps": 1e-5,
        "q_lora_rank": 2048,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_group": 1,
        "topk_group": 1,
        "index_n_heads": 32,
        "indexer_rope_interleave": True,
    }

    def check(self) -> None:
        super().check()
        self.require(
            "indexer_rope_interleave",
            True,
            f"llama.cpp's {self.arch} rotates neighbours",
        )
        kinds = self.config.values.get("indexer_types") or self._pattern()
        if not names_each(kinds, self.n_layers, (_OWN, _SHARED)) or kinds[0] != _OWN:
            raise self.refused(
                f"indexer_types must name {_OWN} or {_SHARED} for each of "
                f"{self.n_layers} layers, {_OWN} first"
            )
        self.chooses = [kind == _OWN for kind in kinds]

    def _pattern(self) -> list[str]:
        """As transformers' class makes it of the older keys."""
        given = self.config.values.get("index_topk_pattern")
        if given is not None:
            return [_LETTERS.get(letter, letter) for letter in given]
        period = self.config.integer("index_topk_freq", default=1)
        offset = self.config.integer("index_skip_topk_offset", default=2, minimum=0)
        return [
            _SHARED if max(i - offset + 1, 0) % period else _OWN
            for i in range(self.n_layers)
        ]

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {"attention.indexer.types": self.chooses}

    def attention(self, module: str) -> Iterator[TensorRule]:
        chooses = self.chooses[int(module.split(".")[2])]
        yield from (
            super().attention(module)
            if chooses
            else Glm4MoeLite.attention(self, module)
        )


FAMILY = GlmMoeDsa
