"""What a file says, what the kernels do and what the authors meant, against each other in numbers.

Three levels: ``table`` (the file as llama.cpp reads it against what was asked for), ``kernel`` (the native
rotation against float64) and, with a reference checkpoint, ``logits`` (llama.cpp against transformers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import GgufError, RopeError, UsageError
from ggext.gguf.reader import GgufFile, read_gguf
from ggext.rope import methods
from ggext.rope.capabilities import capability_of
from ggext.rope.compare import EXACT_FREQUENCY, EXACT_GAIN, compare, pair_errors
from ggext.rope.decode import ROPE_FREQS, decode
from ggext.rope.recipe import RECIPE_KEY, Recipe, parse_recipe
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable
from ggext.sources import named_model, shown

if TYPE_CHECKING:
    import numpy as np

#: float32 rounding of a rotation of values up to 1: three operations of 6e-8 each, and the gain.
KERNEL_TOLERANCE = 1e-6
#: Mean KL in nats that the weights' own rounding explains (measured on a Llama of 0.26 M parameters, see
#: docs/verify.md); only float32 weights show the RoPE alone.
KL_TOLERANCE = {"F32": 1e-6, "F16": 1e-5, "BF16": 1e-3, "Q8_0": 1e-2}
KL_TOLERANCE_OTHER = 1.0
DEFAULT_TOKENS = 2048


@dataclass(frozen=True)
class Check:
    """One number against its tolerance. ``detail``: where the worst value is, in words."""

    level: str
    quantity: str
    value: float
    tolerance: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.value <= self.tolerance  # a NaN fails


@dataclass(frozen=True)
class Report:
    """``wanted_from``: whose word the file was held to. ``notes``: what was not measured, and why."""

    file: str
    wanted_from: str
    scaling: dict[str, Any]
    context: int
    checks: list[Check]
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        return {**asdict(self), "passed": self.passed, "checks": checks}


@dataclass(frozen=True)
class Wanted:
    """What the file must do, and who says so."""

    scaling: RopeScaling
    geometry: RopeGeometry
    source: str

    @property
    def table(self) -> RopeTable:
        return methods.make_table(self.scaling, self.geometry)


def verify(
    path: Path,
    reference: Path | None = None,
    tokens: int | None = None,
    tolerance: float | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Check ``path``. ``reference``: the checkpoint it was made from. ``tokens``: how many are evaluated for
    the logits. ``tolerance``: mean KL in nats, in place of the weight type's own.

    Raises a ``GgextError`` when something cannot be checked at all; a wrong file is a failed check.
    """
    reference = named_model(reference) if reference is not None else None
    gguf = read_gguf(path)
    effective = effective_table(gguf)
    wanted = what_is_wanted(gguf, reference)
    checks = [*check_table(wanted.table, effective), check_kernel(effective, wanted.geometry)]
    notes: list[str] = []
    if reference is None:
        notes.append("logits: not measured; give --reference CHECKPOINT to compare with transformers")
    else:
        checks += check_logits(gguf, reference, wanted, tokens, tolerance, notes, progress)
    scaling = {"method": wanted.scaling.method, **wanted.scaling.given()}
    return Report(str(path), wanted.source, scaling, effective.context, checks, notes)


def effective_table(gguf: GgufFile) -> RopeTable:
    """The table that llama.cpp computes from a file. Raises ``RopeError`` where it, or ggext, cannot."""
    layout = capability_of(gguf.arch).layout
    tensors = {ROPE_FREQS: gguf.float_tensor(ROPE_FREQS).tolist()} if ROPE_FREQS in gguf.tensors else {}
    try:
        return decode(gguf.arch_keys(), tensors, layout, gguf.arch)
    except RopeError as error:
        raise RopeError(f"{gguf.path}: {error}") from None


def what_is_wanted(gguf: GgufFile, reference: Path | None) -> Wanted:
    """The recipe in the file says what was asked; a reference checkpoint says of which model."""
    recipe = parse_recipe(gguf.get(RECIPE_KEY)) if RECIPE_KEY in gguf.fields else None
    if reference is None:
        if recipe is None:
            raise UsageError(
                f"{gguf.path} has no {RECIPE_KEY}: nothing says what was asked for; give --reference CHECKPOINT"
            )
        return Wanted(recipe.scaling, recipe.geometry, f"recipe in the file (by {recipe.source})")
    return _by_reference(recipe, reference)


def _by_reference(recipe: Recipe | None, reference: Path) -> Wanted:
    from ggext.checkpoint.config import read_config
    from ggext.converters import family_of

    rope = family_of(read_config(reference)).rope()
    if recipe is None or recipe.by_checkpoint:
        return Wanted(rope.scaling, rope.geometry, f"{shown(reference)}/config.json")
    original = methods.original_context(recipe.scaling, rope.geometry)
    geometry = replace(rope.geometry, trained_context=original)
    return Wanted(recipe.scaling, geometry, f"recipe in the file (by {recipe.source}) on {shown(reference)}")


def check_table(wanted: RopeTable, effective: RopeTable) -> list[Check]:
    result = compare(wanted, effective)
    pairs = len(wanted.inv_freq)
    where = f"pair {result.worst_pair} of {pairs}"
    if len(effective.inv_freq) == pairs:
        wrong = sum(error > EXACT_FREQUENCY for error in pair_errors(wanted, effective))
        where += f"; {wrong} pairs are off" if wrong else ""
    gains = f"wanted {wanted.attention_factor:.7g}, file {effective.attention_factor:.7g}"
    short = max(0, wanted.context - effective.context)
    return [
        Check("table", "frequency error, relative", result.frequency_error, EXACT_FREQUENCY, where),
        Check("table", "attention factor error, relative", result.gain_error, EXACT_GAIN, gains),
        Check("table", "context short of the wanted, tokens", short, 0, f"file {effective.context}"),
    ]


def check_kernel(table: RopeTable, geometry: RopeGeometry) -> Check:
    """The native float32 rotation against NumPy's float64, at positions up to the target context."""
    import numpy as np

    from ggext import native

    positions = probe_positions(table.context, geometry.trained_context)
    rows = np.random.default_rng(0).uniform(-1, 1, (len(positions), 2, geometry.head_dim)).astype("<f4")
    turned = native.rotate(rows, positions, table.inv_freq, table.attention_factor, geometry.layout)
    error = np.abs(turned - _rotated_float64(rows, positions, table, geometry)) / table.attention_factor
    worst = np.unravel_index(int(error.argmax()), error.shape)
    return Check(
        "kernel", "native rotation against float64, worst |Δ| / gain", float(error.max()), KERNEL_TOLERANCE,
        f"position {positions[worst[0]]}, {len(positions)} positions to {positions[-1]}",
    )  # fmt: skip


def probe_positions(context: int, trained: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions from 0 to the last of the context: dense at the ends and at the trained edge, log between."""
    import numpy as np

    spread = np.geomspace(1, max(2, context - 1), 64)
    edges = [0, 1, 2, trained - 1, trained, trained + 1, context - 2, context - 1]
    positions = np.unique(np.concatenate([spread, edges]).astype(np.int64))
    return positions[(positions >= 0) & (positions < context)]


def _rotated_float64(
    rows: np.ndarray[Any, Any],
    positions: np.ndarray[Any, np.dtype[np.int64]],
    table: RopeTable,
    geometry: RopeGeometry,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    import numpy as np

    angles = positions[:, None, None] * np.asarray(table.inv_freq)
    cos, sin = np.cos(angles) * table.attention_factor, np.sin(angles) * table.attention_factor
    wide = rows.astype(np.float64)
    half = geometry.n_rot // 2
    if geometry.layout == "norm":
        first, second = slice(0, geometry.n_rot, 2), slice(1, geometry.n_rot, 2)
    else:
        first, second = slice(0, half), slice(half, geometry.n_rot)
    x, y = wide[..., first], wide[..., second]
    result = wide.copy()
    result[..., first], result[..., second] = x * cos - y * sin, x * sin + y * cos
    return result


def check_logits(
    gguf: GgufFile,
    reference: Path,
    wanted: Wanted,
    tokens: int | None,
    tolerance: float | None,
    notes: list[str],
    progress: Callable[[str], None],
) -> list[Check]:
    """llama.cpp's logits against transformers' on the same tokens, inside the trained window and beyond."""
    from ggext import reference as judge
    from ggext.runtime.engine import Model, Session, SessionOptions

    context = wanted.table.context
    if tokens is not None and tokens > context:
        raise UsageError(f"--tokens {tokens} is more than the context of {context}")
    count = tokens or min(context, DEFAULT_TOKENS)
    progress(f"llama.cpp: {count} tokens")
    with Model.open(gguf.path) as model:
        ids = judge.sample_tokens(model, count)
        # 16-bit keys and values would be measured as if they were an error of the file
        with Session(model, SessionOptions(n_ctx=count, kv_type="f32", flash_attention=False)) as session:
            logits = session.logits(ids)
    progress(f"transformers: {count} tokens")
    expected = judge.transformers_logits(reference, wanted.scaling, wanted.geometry, ids)
    if logits.shape != expected.shape:
        raise GgufError(f"{gguf.path} has {logits.shape[1]} tokens in its vocabulary, {reference} {expected.shape[1]}")
    weights = _weight_type(gguf)
    limit = tolerance if tolerance is not None else KL_TOLERANCE.get(weights, KL_TOLERANCE_OTHER)
    window = wanted.geometry.trained_context
    checks = []
    for name, rows in (("in the trained window", slice(0, window)), ("beyond it", slice(window, None))):
        if len(logits[rows]) == 0:
            notes.append(f"logits {name}: not measured; {count} tokens do not pass {window}: raise --tokens")
            continue
        kl, difference = judge.divergence(expected[rows], logits[rows])
        detail = f"{len(kl)} tokens, {weights} weights, worst |Δ logit| {difference:.1e}, worst KL {kl.max():.1e}"
        checks.append(Check("logits", f"mean KL {name}, nats", float(kl.mean()), limit, detail))
    return checks


def _weight_type(gguf: GgufFile) -> str:
    """The type that holds most of the file's values."""
    from ggext.gguf.types import type_name

    values: dict[int, int] = {}
    for tensor in gguf.tensors.values():
        values[tensor.type] = values.get(tensor.type, 0) + math.prod(tensor.shape)
    return type_name(max(values, key=values.__getitem__)) if values else "no"
