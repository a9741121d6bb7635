"""Level ``table``: the file as llama.cpp reads it against what was asked for. Needs the header
alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ggext.checkpoint.named import shown
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import effective_table, recipe_of
from ggext.proof.report import Check, Expected
from ggext.proof.stated import expected_by_keys
from ggext.rope import methods
from ggext.rope.capabilities import capability_of
from ggext.rope.compare import (
    EXACT_FREQUENCY,
    EXACT_GAIN,
    Comparison,
    compare,
    pair_errors,
)
from ggext.rope.config_reader import GROWING
from ggext.rope.decode import decode_sliding, layer_kinds, score_scale
from ggext.rope.keys import context_parameters, query_scale
from ggext.rope.recipe import Recipe
from ggext.rope.scaling import RopeTable

#: Architectures whose files say the extended context together with a factor of another length.
_FINAL = ("gemma3",)


def expected_of(gguf: GgufFile, reference: Path | None) -> Expected:
    """The recipe in the file says what was asked; a reference checkpoint says of which model. A
    file with neither is held to what its own keys mean."""
    recipe = recipe_of(gguf)
    keys = gguf.arch_keys()
    if reference is not None:
        expected = _by_reference(recipe, reference)
    elif recipe is not None:
        expected = Expected(
            recipe.scaling,
            recipe.geometry,
            f"recipe in the file (by {recipe.asked_by})",
        )
    else:
        expected = expected_by_keys(gguf)
    return replace(
        expected,
        query_scale=query_scale(keys),
        layers=layer_kinds(keys, gguf.arch),
        indexer=capability_of(gguf.arch).indexer,
    )


def _by_reference(recipe: Recipe | None, reference: Path) -> Expected:
    from ggext.checkpoint.config import read_config
    from ggext.converters import family_of

    rope = family_of(read_config(reference)).rope()
    if recipe is None or recipe.by_checkpoint:
        rope = rope.understood()
        return Expected(rope.scaling, rope.geometry, f"{shown(reference)}/config.json")
    original = methods.original_context(recipe.scaling, rope.geometry)
    geometry = replace(rope.geometry, trained_context=original)
    return Expected(
        recipe.scaling,
        geometry,
        f"recipe in the file (by {recipe.asked_by}) on {shown(reference)}",
    )


def check_table(
    expected: RopeTable, effective: RopeTable, why: str = ""
) -> list[Check]:
    """``why``: the reason of a frequency error, where it is known."""
    result = compare(expected, effective)
    pairs = len(expected.inv_freq)
    where = f"pair {result.worst_pair} of {pairs}"
    if len(effective.inv_freq) == pairs:
        wrong = sum(
            error > EXACT_FREQUENCY for error in pair_errors(expected, effective)
        )
        where += f"; {wrong} pairs are off" if wrong else ""
    gains = (
        f"wanted {expected.attention_factor:.7g}, file {effective.attention_factor:.7g}"
    )
    short = max(0, expected.context - effective.context)
    return [
        Check(
            "table",
            "frequency error, relative",
            result.frequency_error,
            EXACT_FREQUENCY,
            where,
            why=why,
        ),
        Check(
            "table",
            "attention factor error, relative",
            result.gain_error,
            EXACT_GAIN,
            gains,
        ),
        Check(
            "table",
            "context short of the wanted, tokens",
            short,
            0,
            f"file {effective.context}",
        ),
    ]


def check_reach(gguf: GgufFile, expected: Expected) -> list[Check]:
    """A failed check where the context that is meant is less than the scaling reaches and nothing
    says why; else nothing."""
    scaling = expected.scaling
    context = expected.table.context
    stated = scaling.context_reason is not None or gguf.arch in _FINAL
    if scaling.method not in GROWING or stated:
        return []
    factor = scaling.factor or 1.0
    original = methods.original_context(scaling, expected.geometry)
    short = int(factor * original * (1 - 1e-6)) - context
    if short <= 0:
        return []
    detail = (
        f"factor {factor:g} × original context {original}, and nothing says why the context is "
        f"{context}; bake {scaling.method} {factor:g} with the original context {original} again"
    )
    return [
        Check("table", "context short of the scaling's reach, tokens", short, 0, detail)
    ]


def check_other_layers(gguf: GgufFile, expected: Expected) -> list[Check]:
    """The sliding-window layers' own table, and the scale of all scores, where the architecture has
    them."""
    keys = gguf.arch_keys()
    checks = []
    if "unscaled" in expected.layers:
        effective = decode_sliding(keys, gguf.arch)
        assert effective is not None  # the file has layers that slide
        result = compare(expected.of_unscaled().table, effective)
        where = f"pair {result.worst_pair} of {len(effective.inv_freq)}"
        gains = f"wanted 1, file {effective.attention_factor:.7g}"
        checks += [
            Check(
                "table",
                "sliding layers: frequency error",
                result.frequency_error,
                EXACT_FREQUENCY,
                where,
            ),
            Check(
                "table",
                "sliding layers: attention factor error",
                result.gain_error,
                EXACT_GAIN,
                gains,
            ),
        ]
    if capability_of(gguf.arch).scores != "plain":
        target = methods.score_scale(expected.scaling)
        scale = score_scale(keys, gguf.arch)
        detail = f"wanted {target:.7g}, file {scale:.7g}"
        checks.append(
            Check(
                "table",
                "scale of the scores, relative error",
                abs(scale / target - 1),
                2 * EXACT_GAIN,
                detail,
            )
        )
    return checks


def elsewhere(gguf: GgufFile, expected: RopeTable) -> Comparison | None:
    """What programs make of a file that is right in ggext's own contexts alone; ``None`` for other
    files."""
    if not context_parameters(gguf.arch_keys()):
        return None
    return compare(expected, effective_table(gguf))
