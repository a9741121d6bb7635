"""GLM-4.1V, which sees too: what concerns text is GLM-4-0414, its pairs in sections.

The checkpoints' pairs are neighbours; llama.cpp turns halves where a file has sections, so the rows
of queries and keys are reordered.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, text_part_name, weight, with_bias
from ggext.converters.glm4 import Glm4
from ggext.converters.llama import QKV, Llama

from ggext.rope.config_reader import CheckpointRope

if TYPE_CHECKING:
    import numpy as np


class WithSections(Llama):
    """A family of an architecture that has M-RoPE's sections or none: those where the first two are
    not 0."""

    sectioned = True
    tied_as_part = False
    tied_by_text = True

    def rope(self) -> CheckpointRope:
        rope = super().rope()
        sections = rope.geometry.sections
        if sections is None or 0 in sections[:2]:
            raise self.refused(
                f"mrope_section is {sections}; llama.cpp's architecture "
                f"{self.arch} has sections where the first two are above 0"
            )
        return rope

    def stored_name(self, name: str) -> str:
        return text_part_name(name)


class Glm4v(WithSections, Glm4):
    defaults = {"rms_norm_eps": 1e-5}

    def attention(self, module: str) -> Iterator[TensorRule]:
        n_rot = self.rope().geometry.n_rot
        for name, heads in zip(
            QKV, (self.n_heads, self.n_kv_heads, self.n_kv_heads), strict=True
        ):
            rotated = partial(adjacent_to_half_split, heads, self.head_dim, n_rot)
            order = None if name == "v_proj" else rotated
            yield from with_bias(
                f"{module}.{name}",
                heads * self.head_dim,
                self.n_embd,
                order=order,
            )
        yield weight(f"{module}.o_proj", self.n_embd, self.n_heads * self.head_dim)


@cache
def adjacent_to_half_split(
    n_heads: int, head_dim: int, n_rot: int
) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Row order that turns the rotary pairs (2i, 2i + 1) of each head's first ``n_rot`` dimensions
    into (i, i + n_rot/2)."""
    import numpy as np

    rows = np.arange(n_heads * head_dim).reshape(n_heads, head_dim)
    pairs = rows[:, :n_rot].reshape(n_heads, n_rot // 2, 2).swapaxes(1, 2)
    return np.concatenate(
        [pairs.reshape(n_heads, n_rot), rows[:, n_rot:]], axis=1
    ).ravel()


FAMILY = Glm4v
