"""A scaling in the words of other programs, and what of it they do not honour.

What each of them reads was read in its source, at the commit that stands with it: a program's own
table is then computed from the keys that it honours, and compared with the wanted one in numbers.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ggext.checkpoint.named import shown
from ggext.convert.request import resolve_scaling
from ggext.convert.sources import open_source
from ggext.errors import RopeError, UsageError
from ggext.proof.reference import rope_parameters
from ggext.rope import methods
from ggext.rope.compare import compare
from ggext.rope.config_keys import PARAMETER_OF_KEY
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

Program = Literal["transformers", "vllm", "sglang", "mlx"]
PROGRAMS: tuple[Program, ...] = get_args(Program)
_BASIC = frozenset({"factor", "original_context", "context", "context_reason"})
_BETAS = frozenset({"beta_fast", "beta_slow"})


@dataclass(frozen=True)
class Reading:
    """What a program reads of a scaling."""

    # Where that was read: the version, or a file and its commit.
    source: str
    # YaRN's parameters that it honours, under the names of `RopeScaling`.
    yarn: frozenset[str]
    # The key of a factor on YaRN's own gain, where it has no gain of its own.
    gain_factor: str = ""
    # Whether kinds of layers may have rope parameters of their own.
    kinds: bool = False


READINGS: dict[Program, Reading] = {
    "transformers": Reading(
        "5.23.0",
        _BASIC | _BETAS | {"attention_factor", "truncate", "mscale", "mscale_all_dim"},
        kinds=True,
    ),
    "vllm": Reading(
        "vllm/model_executor/layers/rotary_embedding/__init__.py at 07b12f1b",
        _BASIC | _BETAS | {"truncate"},
        gain_factor="attn_factor",
    ),
    "sglang": Reading(
        "python/sglang/srt/layers/rotary_embedding.py at 00a66ebe",
        _BASIC | _BETAS,
        gain_factor="attn_factor",
    ),
    "mlx": Reading(
        "mlx_lm/models/rope_utils.py at 060aa434",
        _BASIC | _BETAS | {"attention_factor", "mscale", "mscale_all_dim"},
    ),
}


@dataclass(frozen=True)
class Emitted:
    """A configuration for one program."""

    program: Program
    # What to write into config.json, or the command to start it with.
    text: str
    # What of the scaling it does not honour, and what should be known.
    notes: tuple[str, ...]
    # Tokens.
    context: int


def emit(
    model: Path,
    scaling: RopeScaling,
    program: Program,
    target_context: int | None = None,
) -> Emitted:
    """The configuration for ``program``. Raises ``UsageError`` for one that is not known, and
    ``RopeError`` where its words cannot say the scaling."""
    if program not in READINGS:
        raise UsageError(
            f"the program {program!r} is unknown; known: {', '.join(PROGRAMS)}"
        )
    source = open_source(model, replaced=True)
    request = resolve_scaling(scaling, target_context, source, keeps_own=False)
    notes = [*source.notes, *request.notes]
    resolved = request.scaling
    assert resolved is not None
    original = methods.original_context(resolved, source.geometry)
    geometry = replace(source.geometry, trained_context=original)
    reading = READINGS[program]
    if geometry.sliding_base is not None and not reading.kinds:
        raise RopeError(
            f"the sliding-window layers of {shown(model)} have a table of their own, and how "
            f"{program} takes both is not known here; ask for transformers"
        )
    context = methods.extended_context(resolved, geometry)
    notes += _not_honoured(resolved, geometry, program)
    values = rope_parameters(resolved, geometry, source.arch)
    if reading.gain_factor and resolved.method == "yarn":
        values = _with_gain_factor(values, resolved, geometry, reading.gain_factor)
    text = _WRITERS[program](shown(model), values, context)
    notes.append(f"what {program} reads was taken from {reading.source}")
    if program != "transformers":
        notes.append(
            "it is one table for all lengths: short texts pay for it too, so leave it out where "
            "they are all there is"
        )
    return Emitted(program, text, tuple(notes), context)


def _not_honoured(
    scaling: RopeScaling, geometry: RopeGeometry, program: Program
) -> list[str]:
    """A line for each parameter that the program does not read and that changes the table."""
    reading = READINGS[program]
    requested = methods.make_table(scaling, geometry)
    if scaling.method != "yarn":
        return _without_gain(scaling, requested, geometry, program)
    lines = []
    by_factor = (
        {"attention_factor", "mscale", "mscale_all_dim"}
        if reading.gain_factor
        else set()
    )
    for name in sorted(set(scaling.given()) - reading.yarn - by_factor):
        without: dict[str, Any] = {name: None}
        table = methods.make_table(replace(scaling, **without), geometry)
        difference = compare(requested, table)
        if not difference.is_exact:
            lines.append(
                f"{program} does not read {_KEYS.get(name, name)}: its frequencies are off by up "
                f"to {difference.frequency_error:.2g} and its attention factor by "
                f"{difference.gain_error:.2g}, relative"
            )
    return lines


def _without_gain(
    scaling: RopeScaling, requested: RopeTable, geometry: RopeGeometry, program: Program
) -> list[str]:
    usual = methods.make_table(replace(scaling, attention_factor=None), geometry)
    error = compare(requested, usual).gain_error
    if scaling.attention_factor is None or error == 0:
        return []
    line = f"{program} has no attention factor for {scaling.method}: it is off by {error:.2g}"
    return [f"{line}, relative"]


_KEYS = {parameter: key for key, parameter in PARAMETER_OF_KEY.items()}


def _with_gain_factor(
    values: Mapping[str, Any], scaling: RopeScaling, geometry: RopeGeometry, key: str
) -> dict[str, Any]:
    """The gain as a factor on 0.1 ln(factor) + 1, the only way that these programs have."""
    gain = methods.make_table(scaling, geometry).attention_factor
    kept = {
        k: v
        for k, v in values.items()
        if k not in ("attention_factor", "mscale", "mscale_all_dim")
    }
    factor = gain / methods.yarn_gain(scaling.factor or 1.0)
    return kept if abs(factor - 1) < 1e-9 else kept | {key: factor}


def _for_transformers(_: str, values: Mapping[str, Any], context: int) -> str:
    return json.dumps(
        {"max_position_embeddings": context, "rope_parameters": dict(values)}, indent=2
    )


def _for_vllm(model: str, values: Mapping[str, Any], context: int) -> str:
    overrides = json.dumps(
        {"max_position_embeddings": context, "rope_parameters": dict(values)}
    )
    return (
        f"vllm serve {shlex.quote(model)} --hf-overrides {shlex.quote(overrides)} "
        f"--max-model-len {context}"
    )


def _for_sglang(model: str, values: Mapping[str, Any], context: int) -> str:
    overrides = json.dumps(_older(values) | {"max_position_embeddings": context})
    return (
        f"python -m sglang.launch_server --model-path {shlex.quote(model)} "
        f"--json-model-override-args {shlex.quote(overrides)} --context-length {context}"
    )


def _for_mlx(_: str, values: Mapping[str, Any], context: int) -> str:
    return json.dumps(_older(values) | {"max_position_embeddings": context}, indent=2)


def _older(values: Mapping[str, Any]) -> dict[str, Any]:
    """The base at the top level and the rest as ``rope_scaling``."""
    inner = {key: value for key, value in values.items() if key != "rope_theta"}
    scaled = inner["rope_type"] != "default"
    return {"rope_theta": values["rope_theta"]} | (
        {"rope_scaling": inner} if scaled else {}
    )


_WRITERS = {
    "transformers": _for_transformers,
    "vllm": _for_vllm,
    "sglang": _for_sglang,
    "mlx": _for_mlx,
}
