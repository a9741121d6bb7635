"""What a file says, what the kernels do and what the authors meant, against each other in numbers.

Five levels, each a module of ``ggext.proof``: ``table`` (the file as llama.cpp reads it against
what was asked for), ``kernel`` (the rotations against float64), ``graph`` (every ROPE operation
that llama.cpp executes), ``shift`` (whether the cache may roll) and, with a reference checkpoint,
``logits`` (against transformers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.arguments import check
from ggext.checkpoint.named import named_model
from ggext.errors import MissingExtraError, ModelError, RopeError, UsageError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import effective_table, still_pairs_in_words
from ggext.gguf.shards import metadata_part
from ggext.llama_cpp_facts.indexer import unsaid_choice_in_words
from ggext.proof.report import (
    OWN_KEYS,
    Check,
    Expected,
    KernelRow,
    NodeRow,
    PairRow,
    Report,
    ShiftRow,
)
from ggext.proof.stated import check_published
from ggext.proof.table import (
    check_other_layers,
    check_reach,
    check_table,
    elsewhere,
    expected_of,
)
from ggext.rope.capabilities import unrotated
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

if TYPE_CHECKING:
    from ggext.proof.graph import Executed
    from ggext.runtime.model import Model

__all__ = [
    "LEVELS",
    "Check",
    "Expected",
    "Report",
    "effective_table",
    "expected_of",
    "verify",
]

LEVELS = ("table", "kernel", "graph", "shift", "logits")
_LIVE = {"graph", "shift"}  # levels that load the file into llama.cpp
_NEED_LLAMA_CPP = _LIVE | {"kernel"}

Progress = Callable[[str], None]


def verify(
    path: Path,
    reference: Path | None = None,
    tokens: int | None = None,
    tolerance: float | None = None,
    progress: Progress = lambda _: None,
    *,
    levels: Collection[str] | None = None,
    require_shift_safe: bool = False,
) -> Report:
    """Check ``path``; of a model in several parts any of them, or their folder, may be named.
    ``reference``: the checkpoint it was made from. ``tokens``: how many are evaluated for the
    logits. ``tolerance``: mean KL in nats, in place of the weight type's own. ``levels``: some of
    ``LEVELS``, None: all that the installation and the arguments allow.

    Raises a ``GgextError`` when something cannot be checked at all; a wrong file is a failed check.
    """
    check("path", path, Path)
    check("reference", reference, Path | None)
    check("tokens", tokens, int | None)
    check("tolerance", tolerance, float | None)
    check("levels", levels, Collection[str] | None)
    reference = named_model(reference) if reference is not None else None
    if tolerance is not None and tolerance < 0:
        raise UsageError(f"tolerance={tolerance:g}, but a KL divergence is 0 or more")
    chosen, notes = _chosen(levels, reference, require_shift_safe)
    missing = _missing_runtime() if chosen & _NEED_LLAMA_CPP else None
    if missing is not None:
        if _LIVE & chosen and (levels is not None or require_shift_safe):
            raise missing
        chosen -= _LIVE
        notes.append(f"what llama.cpp executes: not measured; {missing}")
    gguf = read_gguf(metadata_part(path))
    unsaid = unsaid_choice_in_words(gguf.arch, gguf.arch_keys())
    notes += [unsaid] if unsaid else []
    still = unrotated(gguf.arch, gguf.arch_keys())
    if still:
        nothing = f"{still}: there is no table to verify"
        if "logits" not in chosen or reference is None:
            raise RopeError(
                f"{gguf.path}: {nothing}; reference=CHECKPOINT compares the logits"
            )
        run = _without_rope(gguf, reference, [*notes, nothing], progress)
        run.logits(reference, tokens, tolerance)
        return run.report()
    effective = effective_table(gguf, by_ggext=True)
    expected = expected_of(gguf, reference)
    run = _Run(gguf, effective, expected, notes, progress)
    if "table" in chosen:
        progress("table: what the file says")
        run.table()
    if _LIVE & chosen:
        run.live(chosen, require_shift_safe)
    if "kernel" in chosen:
        progress("kernel: rotations to a million tokens")
        run.kernels(with_ggml=missing is None)
    if "logits" in chosen and reference is not None:
        run.logits(reference, tokens, tolerance)
    return run.report()


def _without_rope(
    gguf: GgufFile, reference: Path, notes: Sequence[str], progress: Progress
) -> _Run:
    """Of a model without RoPE the logits are all that can be wrong."""
    context = int(gguf.arch_keys().get("context_length", 1))
    geometry = RopeGeometry(0, 1, 1.0, "norm", context)
    table = RopeTable((), 1.0, context)
    source = f"{reference}/config.json"
    expected = Expected(RopeScaling(), geometry, source, stated=table)
    return _Run(gguf, table, expected, notes, progress)


def _chosen(
    levels: Collection[str] | None, reference: Path | None, require_shift_safe: bool
) -> tuple[set[str], list[str]]:
    """The levels to run, and a line for each that is left out without having been asked for."""
    unknown = set(levels or ()) - set(LEVELS)
    if unknown:
        raise UsageError(
            f"unknown level {', '.join(sorted(unknown))}: choose of {', '.join(LEVELS)}"
        )
    chosen = set(LEVELS) if levels is None else set(levels)
    notes = []
    if require_shift_safe:
        chosen.add("shift")
    if "logits" in chosen and reference is None:
        if levels is not None:
            raise UsageError(
                "the level logits needs reference=CHECKPOINT to compare with transformers"
            )
        chosen.remove("logits")
        notes.append(
            "logits: not measured; give reference=CHECKPOINT to compare with transformers"
        )
    return chosen, notes


def _missing_runtime() -> MissingExtraError | ModelError | None:
    from ggext.runtime.llama import lib

    try:
        lib("the proof of what llama.cpp executes")
    except (MissingExtraError, ModelError) as error:
        return error
    return None


class _Run:
    """One verification on its way: what is compared, and what was found so far."""

    def __init__(
        self,
        gguf: GgufFile,
        effective: RopeTable,
        expected: Expected,
        notes: Sequence[str],
        progress: Progress,
    ) -> None:
        self.gguf = gguf
        self.effective = effective
        self.expected = expected
        self.notes = [*notes]
        self.progress = progress
        self.checks: list[Check] = []
        self.nodes: list[Executed] = []
        self.scaled: list[Executed] = []
        self.node_rows: list[NodeRow] = []
        self.kernel_rows: list[KernelRow] = []
        self.shifts: list[ShiftRow] = []
        self.published = ""
        self.elsewhere: float | None = None

    def logits(
        self, reference: Path, tokens: int | None, tolerance: float | None
    ) -> None:
        """What it predicts, against transformers on the checkpoint."""
        from ggext.proof.logits import check_logits

        checks, notes = check_logits(
            self.gguf, reference, self.expected, tokens, tolerance, self.progress
        )
        self.checks += checks
        self.notes += notes

    def table(self) -> None:
        """What the file says."""
        self.checks += check_table(
            self.expected.table, self.effective, still_pairs_in_words(self.gguf)
        )
        self.checks += check_reach(self.gguf, self.expected)
        self.checks += check_other_layers(self.gguf, self.expected)
        by_keys = self.expected.source == OWN_KEYS
        checks, self.published = check_published(
            self.gguf, self.effective, by_keys=by_keys
        )
        self.checks += checks
        other = elsewhere(self.gguf, self.expected.table)
        if other is not None:
            self.elsewhere = other.frequency_error
            self.notes.append(
                "other llama.cpp programs do not set the context parameters that ggext sets for "
                f"this file: their frequencies are off by up to {other.frequency_error:.2g}, at "
                f"pair {other.worst_pair}"
            )

    def live(self, chosen: set[str], require_shift_safe: bool) -> None:
        """What llama.cpp does with the file."""
        from ggext.runtime.model import Model

        self.progress(f"llama.cpp: loading {self.gguf.path}")
        with Model.open(self.gguf.path) as model:
            if "graph" in chosen:
                self.progress("graph: what llama.cpp executes")
                self._graph(model)
            if "shift" in chosen:
                self.progress("shift: what a rolled context does")
                self._shift(model, require_shift_safe)

    def _graph(self, model: Model) -> None:
        from ggext.proof.graph import check_graph, executed_by_node, node_rows, observe

        turns = observe(model, self.expected, self.effective.context)
        self.nodes = executed_by_node(turns)
        self.scaled = [node for node in self.nodes if node.expected is self.expected]
        self.node_rows = node_rows(turns, self.nodes)
        self.checks += check_graph(self.gguf, turns, self.nodes, model.offloads)

    def _shift(self, model: Model, required: bool) -> None:
        from ggext.proof.shift import check_shift, measure_shifts

        try:
            self.shifts = measure_shifts(model)
        except ModelError as error:
            # A file is not wrong for being a kind that cannot be rolled, or not seen.
            if required:
                raise
            self.notes.append(f"shift: not measured; {error}")
            return
        self.checks.append(check_shift(self.gguf, self.shifts, required))

    def kernels(self, with_ggml: bool) -> None:
        from ggext.proof.kernels import check_devices, check_kernels, measure_native

        geometry = self.expected.geometry
        # a gain that is folded into the query weights is not the kernels' to apply
        gain = self.effective.attention_factor / math.sqrt(self.expected.query_scale)
        table = replace(self.effective, attention_factor=gain)
        self.checks += check_kernels(table, geometry)
        self.kernel_rows = measure_native(table, geometry)
        if with_ggml:
            call = self.scaled[0].call if self.scaled else None
            checks, rows = check_devices(table, geometry, call)
            self.checks += checks
            self.kernel_rows += rows

    def report(self) -> Report:
        expected = self.expected.kernel_table.inv_freq
        file = self.effective.inv_freq
        executed = (
            self.scaled[0].inv_freq.tolist() if self.scaled else [None] * len(expected)
        )
        pairs = [
            PairRow(i, *row)
            for i, row in enumerate(zip(expected, file, executed, strict=False))
        ]
        order = {level: i for i, level in enumerate(LEVELS)}
        return Report(
            str(self.gguf.path),
            self.expected.source,
            {"method": self.expected.scaling.method, **self.expected.scaling.given()},
            self.effective.context,
            sorted(self.checks, key=lambda check: order[check.level]),
            self.notes,
            pairs,
            self.node_rows,
            self.kernel_rows,
            self.shifts,
            self.published,
            self.elsewhere,
        )
