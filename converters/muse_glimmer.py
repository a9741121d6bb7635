"""Meta's Muse Glimmer: windows in three of four layers, which alone rotate, a gate on what
attention gives, embeddings, queries and keys that are normed without weights, and norms before and
after each part. Of a model that sees too, the text part.

llama.cpp's loader scales no layer that has a window, and the others do not rotate: nothing but
another base can be baked into such a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, text_part_name, weight
from ggext.converters.llama import QKV, Llama

if TYPE_CHECKING:
    import numpy as np

_PERIOD = 4


class MuseGlimmer(Llama):
    """``slides``: which layers attend to a window."""

    arch = "muse-glimmer"
    defaults = {
        "rms_norm_eps": 1e-5,
        "vocab_size": 202048,
        "hidden_size": 6656,
        "intermediate_size": 19968,
        "num_hidden_layers": 52,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "sliding_window": 2048,
        "final_logit_softcapping": 20.0,
        "qk_scale_factor": 3.87,
        "output_multiplier": 0.19611613513818404,
    }
    biased = QKV
    needs_output = True
    tied_as_part = True

    def check(self) -> None:
        super().check()
        why = f"llama.cpp's architecture {self.arch}"
        self.require("hidden_activation", "silu", f"{why} uses silu")
        self.require("post_norm_eps", 1e-8, f"{why} takes 1e-08")
        last = self.n_layers - 1
        usual = [(last - i) % _PERIOD != 0 for i in range(self.n_layers)]
        self.slides = self.sliding_layers(usual)
        if not any(self.slides):
            raise self.refused(
                f"layer_types names no layer with a window, and {why} has "
                "some in all models"
            )
        given = self.config.values.get("layer_rope_theta")
        bases = usual if given is None else given
        if not isinstance(bases, list) or list(map(bool, bases)) != self.slides:
            raise self.refused(
                f"layer_rope_theta {given!r:.60} has other layers rotate "
                f"than those with a window; {why} rotates these"
            )
        if given is not None and len(set(filter(None, given))) > 1:
            raise self.refused(
                f"layer_rope_theta {given!r:.60} has several bases; "
                "transformers and llama.cpp rotate all layers by rope_theta"
            )

    def metadata(self) -> dict[str, Any]:
        number = self.config.number
        return super().metadata() | {
            "attention.sliding_window": self.config.integer("sliding_window"),
            "attention.sliding_window_pattern": self.slides,
            "final_logit_softcapping": number("final_logit_softcapping"),
            "logit_scale": number("output_multiplier"),
        }

    def stored_name(self, name: str) -> str:
        return text_part_name(name)

    def norm(self, module: str) -> Iterator[TensorRule]:
        # the class of the last norm has its weight as it is
        plus = 0.0 if module == self.final_norm else 1.0
        yield weight(module, self.n_embd, plus=plus)

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield from super().norms(block)
        yield from self.norm(f"{block}.pre_feedforward_layernorm")
        yield from self.norm(f"{block}.post_feedforward_layernorm")

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        rows = self.n_heads * self.head_dim
        yield weight(f"{module}.gate_proj", rows, self.n_embd)
        block = module.removesuffix(".self_attn")
        at = f"blk.{block.rpartition('.')[2]}"
        for name, value in (("q", self.config.number("qk_scale_factor")), ("k", 1.0)):
            # the norms' weights, which no checkpoint has, in place of another norm's
            yield weight(
                f"{block}.input_layernorm",
                self.n_embd,
                target=f"{at}.attn_{name}_norm.weight",
                rows=partial(_one_row, self.head_dim),
                written=(self.head_dim,),
                computed=partial(_all, value),
            )


def _one_row(count: int) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.zeros(count, np.intp)


def _all(value: float, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.full_like(values, value)


FAMILY = MuseGlimmer
