"""Level ``table``: the file as llama.cpp reads it against what was asked for. Needs the header alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ggext.errors import RopeError, UsageError
from ggext.gguf.reader import GgufFile
from ggext.proof.report import FOLDED, Check, Wanted
from ggext.rope import methods
from ggext.rope.capabilities import capability_of
from ggext.rope.compare import EXACT_FREQUENCY, EXACT_GAIN, compare, pair_errors
from ggext.rope.decode import ROPE_FREQS, decode
from ggext.rope.recipe import RECIPE_KEY, Recipe, parse_recipe
from ggext.rope.scaling import RopeTable


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
    folded = recipe is not None and recipe.encoding == FOLDED
    if reference is not None:
        return replace(_by_reference(recipe, reference), folded=folded)
    if recipe is None:
        raise UsageError(
            f"{gguf.path} has no {RECIPE_KEY}: nothing says what was asked for; give --reference CHECKPOINT"
        )
    return Wanted(recipe.scaling, recipe.geometry, f"recipe in the file (by {recipe.source})", folded)


def _by_reference(recipe: Recipe | None, reference: Path) -> Wanted:
    from ggext.checkpoint.config import read_config
    from ggext.converters import family_of

    rope = family_of(read_config(reference)).rope()
    if recipe is None or recipe.by_checkpoint:
        return Wanted(rope.scaling, rope.geometry, f"{reference}/config.json")
    original = methods.original_context(recipe.scaling, rope.geometry)
    geometry = replace(rope.geometry, trained_context=original)
    return Wanted(recipe.scaling, geometry, f"recipe in the file (by {recipe.source}) on {reference}/config.json")


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
