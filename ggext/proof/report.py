"""What a proof consists of: checks, and the figures that they rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ggext.llama_cpp_facts.node_names import is_of_indexer, layer_of_node
from ggext.rope import methods
from ggext.rope.decode import LayerKind
from ggext.rope.scaling import Layout, RopeGeometry, RopeScaling, RopeTable

#: Whose word a file without a recipe is held to.
OWN_KEYS = "its own keys"
#: Level → what its failure means.
_WRONG = {
    "table": "the file does not say what {}",
    "kernel": "rotations are not right on this machine",
    "graph": "llama.cpp executes something else than {}",
    "shift": "a context that rolls destroys it",
    "logits": "its predictions are not those of the checkpoint",
}


@dataclass(frozen=True)
class Check:
    """One number against its tolerance."""

    level: str
    quantity: str
    value: float
    tolerance: float
    # Where the worst value is, in words.
    detail: str = ""
    # The likely reason of a failure.
    why: str = ""
    # Whether a failure fails the file, or is only reported.
    required: bool = True

    @property
    def passed(self) -> bool:
        return self.value <= self.tolerance  # a NaN fails


@dataclass(frozen=True)
class PairRow:
    """One rotated pair: frequencies in radians per token, ``executed`` None where no graph was
    measured."""

    pair: int
    wanted: float
    file: float
    executed: float | None = None


@dataclass(frozen=True)
class NodeRow:
    """One ROPE operation of the live graph: its name, the parameters that it runs with, and its
    worst errors over all positions and pairs (|Δ| / gain; relative for frequency and gain)."""

    node: str
    parameters: Mapping[str, float]
    error: float
    frequency_error: float
    gain_error: float


@dataclass(frozen=True)
class KernelRow:
    """The worst |Δ| of cos and sin, divided by the gain, of one kernel at one position. ``bound``:
    what float32 angles explain; ``inside``: whether the file's context reaches the position."""

    kernel: str
    position: int
    error: float
    bound: float
    pair: int
    inside: bool
    meaning: str


@dataclass(frozen=True)
class ShiftRow:
    """After so many context shifts."""

    shifts: int
    # The cached keys' norm against the first one, of the layer that changed most.
    k_norm: float
    # Of the next token from a fresh evaluation, in nats.
    kl: float
    # The same KL of two fresh evaluations at other positions: what rounding alone does.
    noise: float = 0.0


@dataclass(frozen=True)
class Report:
    """What was measured, and what it comes to."""

    file: str
    # Whose word the file was held to.
    wanted_from: str
    scaling: Mapping[str, Any]
    context: int
    checks: Sequence[Check]
    # What was not measured, and why.
    notes: Sequence[str] = ()
    pairs: Sequence[PairRow] = ()
    nodes: Sequence[NodeRow] = ()
    kernels: Sequence[KernelRow] = ()
    shifts: Sequence[ShiftRow] = ()
    # What the model's authors publish; empty where they are not known.
    published: str = ""
    # The worst relative error of a frequency in other programs than ggext, None where they do the
    # same.
    elsewhere: float | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks if check.required)

    @property
    def shift_safe(self) -> bool | None:
        """Whether the cache may roll; None where that was not measured."""
        levels = [check.passed for check in self.checks if check.level == "shift"]
        return all(levels) if levels else None

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        tokens = f"{self.context:,} tokens"
        if not self.passed:
            levels = [
                check.level
                for check in self.checks
                if check.required and not check.passed
            ]
            source = (
                "its keys mean" if self.wanted_from == OWN_KEYS else "was asked for"
            )
            return f"{tokens}: WRONG, {_WRONG[levels[0]].format(source)}"
        exact = "exact in llama.cpp"
        if not any(check.level == "graph" for check in self.checks):
            exact = "exact by what the file says; llama.cpp was not run"
        elif self.elsewhere is not None:
            exact = f"exact in ggext, frequencies off by up to {self.elsewhere:.2g} elsewhere"
        rolling = {None: "", True: "; safe to roll", False: "; do not let it roll"}
        return f"{tokens}: {exact}{rolling[self.shift_safe]}"

    def as_dict(self) -> dict[str, Any]:
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        return {
            **asdict(self),
            "passed": self.passed,
            "verdict": self.verdict,
            "shift_safe": self.shift_safe,
            "checks": checks,
        }


@dataclass(frozen=True)
class Expected:
    """What the file must do, and who says so."""

    scaling: RopeScaling
    geometry: RopeGeometry
    source: str
    # What the file's query weights are multiplied by, the square of a gain that is folded there.
    query_scale: float = 1.0
    # How each layer rotates, empty where all do it alike.
    layers: tuple[LayerKind, ...] = ()
    # The layout of an indexer's rotation, where there is one.
    indexer: Layout | None = None
    # The table itself, where no scaling stands for it (frequency factors of an unknown method).
    stated: RopeTable | None = None

    def of_node(self, name: str) -> Expected:
        """What a ROPE operation must do, by the layer that llama.cpp's name for it ends in
        (``Qcur-5``)."""
        if self.indexer is not None and is_of_indexer(name):
            return replace(self, geometry=replace(self.geometry, layout=self.indexer))
        layer = layer_of_node(name)
        if layer >= len(self.layers) or self.layers[layer] == "scaled":
            return self
        return self.of_unscaled()

    def of_unscaled(self) -> Expected:
        """What the sliding-window layers must do, where they have a table of their own."""
        scaling = RopeScaling(
            context=methods.extended_context(self.scaling, self.geometry)
        )
        return Expected(scaling, self.geometry.of_sliding(), self.source)

    @property
    def table(self) -> RopeTable:
        return self.stated or methods.make_table(self.scaling, self.geometry)

    @property
    def kernel_table(self) -> RopeTable:
        """The table that llama.cpp's ROPE operation itself must turn by."""
        table = self.table
        return replace(
            table, attention_factor=table.attention_factor / math.sqrt(self.query_scale)
        )
