"""The three types that everything about RoPE is said in: geometry, request, table.

A RoPE table is all that rotary scaling comes to: one angular frequency for each rotated pair and
one gain on cos and sin. ``RopeScaling`` is the request, ``RopeGeometry`` the model it applies to.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ggext.arguments import check_fields

Method = Literal[
    "none", "linear", "ntk", "dynamic", "yarn", "longrope", "llama3", "proportional"
]
Layout = Literal["norm", "neox"]


@dataclass(frozen=True)
class RopeGeometry:
    """The rotary side of a model, before any scaling."""

    # Rotated dimensions of a head: even, at most `head_dim`; 0 where nothing rotates.
    n_rot: int
    head_dim: int
    # rope_theta.
    base: float
    # Which two dimensions make a pair: norm (2i, 2i+1) or neox (i, i + n_rot/2).
    layout: Layout
    # Tokens that the checkpoint was trained for, before any extension.
    trained_context: int
    # The rope_theta of the sliding-window layers, where a scaling concerns the other layers alone
    # (Gemma 3, Olmo 3); None where all layers that rotate have the same table.
    sliding_base: float | None = None
    # M-RoPE's counts of pairs, by coordinate (`rope.sections`).
    sections: tuple[int, ...] | None = None
    # of the sliding-window layers, where their heads are of another size
    sliding_n_rot: int | None = None
    sliding_head_dim: int | None = None
    # only the first so many pairs turn, as they would if all did (Gemma 4's proportional RoPE)
    turning: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def of_sliding(self) -> RopeGeometry:
        """That of the sliding-window layers, which have a base of their own."""
        return replace(
            self,
            n_rot=self.sliding_n_rot or self.n_rot,
            head_dim=self.sliding_head_dim or self.head_dim,
            base=self.sliding_base or self.base,
            sliding_base=None,
            sliding_n_rot=None,
            sliding_head_dim=None,
            turning=None,
        )


@dataclass(frozen=True)
class RopeScaling:
    """What is asked for: a method and its parameters. A parameter that is None was not given.

    Parameters without a comment have their names in the literature.
    """

    method: Method = "none"
    # How many times the context grows.
    factor: float | None = None
    # Tokens: the context that the unscaled table was trained for.
    original_context: int | None = None
    # Tokens that the result is meant for, where that is not factor · original context (Llama 3.2:
    # factor 32 on 8192, meant for 131072).
    context: int | None = None
    # The gain on cos and sin, in place of the method's own.
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    # The share of the pairs that rotates at all (Gemma's proportional RoPE).
    proportion: float | None = None
    # Why `context` is less than factor · original context, where a checkpoint means it so.
    context_reason: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def given(self) -> dict[str, Any]:
        """The parameters that were given, by name, without the method."""
        return {
            k: v for k, v in asdict(self).items() if v is not None and k != "method"
        }


@dataclass(frozen=True)
class RopeTable:
    """The angular frequencies of a model's pairs and the gain: what every method comes to."""

    # Radians per token, float64, one for each rotated pair.
    inv_freq: tuple[float, ...]
    # The gain on both cos and sin.
    attention_factor: float
    # Tokens for which the table is meant.
    context: int
    # The shortest and the longest text (tokens) that has this table; None where every length has it
    # (all methods but dynamic NTK and LongRoPE).
    lengths: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Tokens for a full turn of each pair; infinite where the pair does not turn."""
        return tuple(2 * math.pi / w if w else math.inf for w in self.inv_freq)
