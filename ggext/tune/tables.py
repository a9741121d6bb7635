"""The RoPE table that a model of transformers computes with, against the one that was asked for.

transformers takes a configuration that contradicts itself, and one that was changed after the model
was loaded, without a word. So nothing is trained before
the table in memory is compared with ggext's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ggext.errors import RopeError
from ggext.rope import methods
from ggext.rope.compare import EXACT_FREQUENCY, EXACT_GAIN, Comparison, compare
from ggext.rope.families import SLIDING
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable


@dataclass(frozen=True)
class WantedRope:
    """What was asked for, and the tables that it means."""

    scaling: RopeScaling
    # of the pretrained model, before any scaling
    geometry: RopeGeometry

    @property
    def table(self) -> RopeTable:
        """Of all layers, or of those with full attention where the others have their own."""
        return methods.make_table(self.scaling, self.geometry)

    @property
    def sliding(self) -> RopeTable | None:
        """Of the sliding-window layers, where they have one of their own."""
        return methods.sliding_table(self.scaling, self.geometry)

    @property
    def context(self) -> int:
        """Tokens that the scaled model is meant for."""
        return methods.extended_context(self.scaling, self.geometry)

    @property
    def trained(self) -> int:
        """Tokens that the model was trained on before."""
        return methods.original_context(self.scaling, self.geometry)


@dataclass(frozen=True)
class TableProof:
    """A table that was found, against the wanted one."""

    # Where it was found, such as "before training".
    place: str
    pairs: int
    attention_factor: float
    difference: Comparison

    def __str__(self) -> str:
        return (
            f"RoPE table {self.place}: {self.pairs} pairs, attention factor "
            f"{self.attention_factor:.6g}; off by {self.difference.frequency_error:.1e} and "
            f"{self.difference.gain_error:.1e} at most (relative)"
        )


def prove(place: str, requested: RopeTable, actual: RopeTable) -> TableProof:
    """Raises ``RopeError`` where the tables differ by more than 1e-6 anywhere, relative."""
    difference = compare(requested, actual)
    if not difference.is_exact:
        pair = difference.worst_pair
        raise RopeError(
            f"the RoPE table {place} is not the one that was asked for: pair {pair} differs by "
            f"{difference.frequency_error:.2g} and the attention factor "
            f"{actual.attention_factor:g} by {difference.gain_error:.2g}, relative "
            f"(at most {EXACT_FREQUENCY:g} and {EXACT_GAIN:g}): "
            "nothing that is trained with it holds for the file"
        )
    return TableProof(
        place, len(requested.inv_freq), actual.attention_factor, difference
    )


def prove_model(place: str, model: Any, requested: WantedRope) -> TableProof:
    """Every table of a loaded model of transformers. Raises ``RopeError`` as ``prove`` does."""
    proofs = []
    for kind, table in tables_in(model, requested.context):
        expected = (
            requested.sliding
            if kind == SLIDING and requested.sliding
            else requested.table
        )
        proofs.append(prove(place, expected, table))
    if not proofs:
        raise RopeError(
            f"{type(model).__name__} has no rotary table where transformers keeps one (inv_freq, "
            "attention_scaling): what it is trained with cannot be proved"
        )
    return max(proofs, key=lambda proof: proof.difference.frequency_error)


def tables_in(model: Any, context: int) -> Iterator[tuple[str, RopeTable]]:
    """The tables in a model's memory, each with the kind of its layers; empty for all of them.

    ``context``: tokens, which the model does not say.
    """
    for module in model.modules():
        values = vars(module)
        for name in values.keys() | module._buffers.keys():
            kind = name.removesuffix("attention_scaling")
            if kind == name:
                continue
            frequencies = getattr(module, f"{kind}inv_freq", None)
            if frequencies is not None and frequencies.dim() == 1:
                inv_freq = tuple(frequencies.detach().double().cpu().tolist())
                yield (
                    kind.removesuffix("_"),
                    RopeTable(inv_freq, float(values[name]), context),
                )


def set_context(config: Any, requested: WantedRope) -> None:
    """The scaling in a configuration of transformers, in full, before a model is made from it.

    The base and the original context stand next to the method: without the first transformers
    fails, without the second it takes ``max_position_embeddings``, which is the new length, for it.
    """
    from ggext.proof.reference import set_rope

    text = config.get_text_config()
    set_rope(text, requested.scaling, requested.geometry)
    text.max_position_embeddings = requested.context
