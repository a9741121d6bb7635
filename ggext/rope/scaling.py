"""The three types that everything about RoPE is said in: geometry, request, table.

A RoPE table is all that rotary scaling comes to: one angular frequency for each rotated pair and
one gain on cos and sin. ``RopeScaling`` is the request, ``RopeGeometry`` the model it applies to.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ggext.arguments import check_fields

Method = Literal["none", "linear", "ntk", "dynamic", "yarn", "longrope", "llama3", "proportional"]
Layout = Literal["norm", "neox"]


@dataclass(frozen=True)
class RopeGeometry:
    """The rotary side of a model, before any scaling.

    ``n_rot``: rotated dimensions of a head (even, ≤ ``head_dim``). ``base``: rope_theta.
    ``layout``: which two dimensions make a pair, ``norm`` (2i, 2i+1) or ``neox`` (i, i + n_rot/2).
    ``trained_context``: tokens that the checkpoint was trained for, before any extension.
    ``sliding_base``: the rope_theta of the sliding-window layers, where a scaling concerns the
    other layers alone (Gemma 3, Olmo 3); ``None`` where all layers that rotate do it alike.
    ``sections``: M-RoPE's counts of pairs, by coordinate (``rope.sections``).
    """

    n_rot: int
    head_dim: int
    base: float
    layout: Layout
    trained_context: int
    sliding_base: float | None = None
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
    """What is asked for: a method and its parameters; a parameter that is ``None`` was not given.

    ``factor``: how many times the context grows. ``original_context``: tokens, the context that the
    unscaled table was trained for. ``context``: tokens that the result is meant for, where that is
    not factor · original context (Llama 3.2: factor 32 on 8192, meant for 131072).
    ``attention_factor``: the gain on cos and sin, replacing the method's own. The others are the
    method's parameters under their names in the literature; ``proportion``: the share of the pairs
    that turns at all (Gemma's proportional RoPE). ``context_reason``: why ``context`` is less than
    factor · original context, where a checkpoint means it so.
    """

    method: Method = "none"
    factor: float | None = None
    original_context: int | None = None
    context: int | None = None
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
    proportion: float | None = None
    context_reason: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def given(self) -> dict[str, Any]:
        """The parameters that were given, by name, without the method."""
        return {k: v for k, v in asdict(self).items() if v is not None and k != "method"}


@dataclass(frozen=True)
class RopeTable:
    """``inv_freq``: radians per token, float64, one for each rotated pair. ``attention_factor``:
    the gain on both cos and sin. ``context``: tokens for which the table is meant. ``lengths``: the
    shortest and longest text (tokens) that has this table, ``None`` where every length has it (all
    methods but dynamic NTK and LongRoPE).
    """

    inv_freq: tuple[float, ...]
    attention_factor: float
    context: int
    lengths: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Tokens for a full turn of each pair; infinite where the pair does not turn."""
        return tuple(2 * math.pi / w if w else math.inf for w in self.inv_freq)
