"""Tables that hold for a length of text: LongRoPE's short and long one, and dynamic NTK's growing
base.

llama.cpp fixes a context's table when it makes the context, so a text that outgrows one moves to
another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ggext.errors import ModelError
from ggext.footprint.cache import STEP
from ggext.gguf.rope import effective_table
from ggext.rope.decode import geometry_of
from ggext.rope.keys import float32, stated_method
from ggext.rope.methods import ntk_base, theta
from ggext.rope.scaling import RopeGeometry
from ggext.runtime.model import Model

DynamicNtk = Literal["rotate", "replay"]


@dataclass(frozen=True)
class Regime:
    """A context of ``span`` tokens. ``freq_base``: RoPE's base in it, None: the file's."""

    span: int
    freq_base: float | None = None


def regimes(
    model: Model, n_ctx: int, dynamic_ntk: DynamicNtk | None
) -> tuple[Regime, ...]:
    """What a text passes through on its way to `n_ctx` tokens, the last one for all of them.

    LongRoPE: the file's original context with the short factors, then the whole with the long ones.
    Dynamic NTK (transformers' formula, without a factor of its own): at each doubling of the
    trained context the base of the doubled length. Raises ModelError for dynamic NTK over a file
    that is scaled already.
    """
    if dynamic_ntk is not None:
        return tuple(_doublings(_unscaled(model), n_ctx))
    short = model.n_ctx_original // STEP * STEP
    if stated_method(model.header.arch_keys())[0] == "longrope" and 0 < short < n_ctx:
        return Regime(short), Regime(n_ctx)
    return (Regime(n_ctx),)


def _doublings(geometry: RopeGeometry, n_ctx: int) -> list[Regime]:
    span = geometry.trained_context
    result = []
    while True:
        base = ntk_base(span / geometry.trained_context, geometry)
        result.append(Regime(min(span, n_ctx), float32(base)))
        if span >= n_ctx:
            return result
        span *= 2


def _unscaled(model: Model) -> RopeGeometry:
    geometry = geometry_of(model.header.arch_keys(), model.header.arch)
    table = effective_table(model.header)
    if table.inv_freq != tuple(theta(geometry)) or table.attention_factor != 1:
        raise ModelError(
            f"{model.path} is scaled already: dynamic NTK is for a file without, as "
            "rope=RopeScaling('none') makes it"
        )
    return geometry
