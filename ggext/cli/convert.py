"""``ggext convert``."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggext.cli.numbers import NUMBER, SIZE, TOKENS
from ggext.errors import UsageError

if TYPE_CHECKING:
    from ggext.convert import ConvertOptions, Plan
    from ggext.rope.scaling import Method, RopeScaling

_METHODS: tuple[Method, ...] = ("yarn", "linear", "ntk", "llama3")
_PARAMETERS = (
    "original_context",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "mscale",
    "mscale_all_dim",
    "low_freq_factor",
    "high_freq_factor",
)


@click.command(short_help="Bake a RoPE scaling into a GGUF file.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--yarn", type=NUMBER, metavar="F", help="YaRN: F times the trained context.")
@click.option("--linear", type=NUMBER, metavar="F", help="Position interpolation by F.")
@click.option("--ntk", type=NUMBER, metavar="F", help="NTK-aware base for F times the context.")
@click.option("--llama3", type=NUMBER, metavar="F", help="Llama 3.1's scaling by F.")
@click.option(
    "--rope",
    type=click.Choice(["none", *_METHODS]),
    help="A method by name: none removes the "
    "scaling; another takes its factor from --target-context.",
)
@click.option(
    "--target-context",
    type=TOKENS,
    metavar="N",
    help="The smallest factor that reaches N tokens (YaRN if no method is named).",
)
@click.option(
    "--original-context",
    type=TOKENS,
    metavar="N",
    help="Tokens that the unscaled model was trained for, if the model says otherwise.",
)
@click.option(
    "--attention-factor",
    type=NUMBER,
    metavar="M",
    help="Gain on cos and sin, in place of the method's.",
)
@click.option(
    "--beta-fast", type=NUMBER, metavar="R", help="YaRN: keep pairs with more than R turns [32]."
)
@click.option(
    "--beta-slow",
    type=NUMBER,
    metavar="R",
    help="YaRN: interpolate pairs with fewer than R turns [1].",
)
@click.option(
    "--truncate/--no-truncate",
    default=None,
    help="YaRN: round the range of blended pairs [truncate].",
)
@click.option(
    "--mscale",
    type=NUMBER,
    metavar="K",
    help="YaRN: the gain is g(K) / g(mscale-all-dim), where both are "
    "given and g(K) = 0.1 K ln F + 1.",
)
@click.option("--mscale-all-dim", type=NUMBER, metavar="K", help="YaRN: see --mscale.")
@click.option(
    "--low-freq-factor", type=NUMBER, metavar="R", help="Llama 3: interpolate under R turns [1]."
)
@click.option(
    "--high-freq-factor", type=NUMBER, metavar="R", help="Llama 3: keep pairs above R turns [4]."
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.toml",
    help="Repeat the request in FILE; with a scaling option, write the request to FILE.",
)
@click.option(
    "--type",
    "type_",
    default="auto",
    metavar="TYPE",
    show_default=True,
    help="auto (as in the model), f32, f16, bf16, q8_0, or a K-quant such as Q4_K_M.",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help=(
        "Another type for tensors with such names, * standing for anything: "
        "output.weight=f16. Repeatable, "
        "the last that matches holds."
    ),
)
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="An importance matrix of llama.cpp's imatrix tool, for its quantizer.",
)
@click.option(
    "--split",
    type=SIZE,
    metavar="SIZE",
    help="Several files, OUT-00001-of-0000N.gguf, of at most SIZE (4G, 500M) of tensors each.",
)
@click.option(
    "--encoding",
    type=click.Choice(["auto", "keys", "tensor", "folded", "runtime"]),
    default="auto",
    show_default=True,
    help="How the scaling is written: metadata keys; frequency factors; with the "
    "attention factor folded into the query weights, which survives context shifts; or right in "
    "ggext "
    "alone, where nothing else is exact. auto is the simplest exact one.",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the hub.")
@click.option(
    "--via-llama-cpp",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help=(
        "For a family that ggext does not convert: run the converter in this checkout of "
        "llama.cpp, then "
        "bake and verify its file."
    ),
)
@click.option(
    "--in-place",
    is_flag=True,
    help="Change MODEL itself, a GGUF file, one of its parts or their folder: "
    "the data stays, ggext undo MODEL takes it back.",
)
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan and write nothing; of a model on the hub, fetch all but the weights.",
)
def convert(model: Path, out: Path | None, **options: Any) -> None:
    """Write MODEL (a Hugging Face folder, a model's id on the hub such as Qwen/Qwen3-0.6B, or a
    .gguf file) as a GGUF file with a RoPE scaling in it.

    Without a scaling option, what the checkpoint's own config says is baked. OUT defaults to the
    model's name in the current folder.
    """
    _without_collector()
    from ggext.checkpoint.named import named_model, planned_model
    from ggext.convert.sources import check_family

    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # NumPy starts them on import, 0.06 s of CPU time; none is used
    asked = _options(model, out, options)
    by_ggext, revision = options["via_llama_cpp"] is None, options["revision"]
    check = partial(check_family, replaced=asked.replaces_scaling)
    if by_ggext and options["dry_run"]:
        named = click.get_current_context().with_resource(
            planned_model(model, revision, check=check)
        )
    else:
        named = named_model(model, revision, show_progress=True, check=check if by_ggext else None)
    asked = replace(asked, model=named)
    if by_ggext:
        _convert(asked, options)
    else:
        _convert_via_llama_cpp(asked, options)


def _without_collector() -> None:
    """A vocabulary is some 100,000 objects, none of them in a circle: looking for circles takes 30
    ms while it is made, and as long again when Python ends."""
    gc.disable()
    click.get_current_context().call_on_close(gc.enable)
    atexit.register(gc.freeze)


def _convert(asked: ConvertOptions, options: dict[str, Any], name: str | None = None) -> Plan:
    """``name``: of the model, where what is read is not the user's own file."""
    from ggext.cli.progress import transfer
    from ggext.convert import execute, plan

    planned = plan(asked)
    if options["dry_run"]:
        planned.completed()  # for its notes and errors
    for line in describe(planned, name):
        click.echo(line)
    if options["dry_run"]:
        click.echo("dry run: nothing was written")
        return planned
    told = len(planned.notes)
    with transfer(planned.nbytes, planned.out.name) as progress:
        done = execute(planned, progress)
    for note in done.notes[told:]:
        click.echo(f"note: {note}")
    if planned.rounding.numbers:
        click.echo(
            f"folding: rounding of the query weights rms {planned.rounding.rms:.1e}, worst "
            f"{planned.rounding.worst:.1e}, relative"
        )
    for path in done.files:
        click.echo(
            f"{'changed' if done.in_place else 'wrote'} {path} ({path.stat().st_size:,} bytes"
            f"{': ' if done.how else ''}{done.how})"
        )
    if done.in_place:
        click.echo(f"ggext undo {done.out} takes it back")
    _write_recipe(asked, options)
    return done


def _convert_via_llama_cpp(asked: ConvertOptions, options: dict[str, Any]) -> None:
    """What is written is verified at once: ggext has not read this checkpoint itself."""
    from ggext.checkpoint.named import shown
    from ggext.convert.llama_cpp_converter import converted

    name = shown(asked.model)
    click.echo(f"{name}: llama.cpp's converter runs", err=True)
    with converted(asked, options["via_llama_cpp"]) as through:
        done = _convert(through, options, name)
    if options["dry_run"]:
        return
    if done.scaling is None:
        click.echo(
            "not verified: no scaling was asked for, the file says what llama.cpp's converter wrote"
        )
        return
    _verify(done.files[0])


def _verify(out: Path) -> None:
    from ggext.verify import verify

    report = verify(out)
    wrong = [check for check in report.checks if not check.passed and check.required]
    for check in wrong:
        click.echo(
            f"WRONG: {check.level}, {check.quantity}: {check.value:.2g}, at most "
            f"{check.tolerance:.2g}",
            err=True,
        )
    click.echo(
        f"verified: {len(report.checks) - len(wrong)} of {len(report.checks)} checks within "
        "tolerance; "
        f"ggext verify {out} shows them"
    )
    sys.exit(0 if report.passed else 1)


def _options(model: Path, out: Path | None, options: dict[str, Any]) -> ConvertOptions:
    from ggext.convert import ConvertOptions

    encoding = None if options["encoding"] == "auto" else options["encoding"]
    asked = ConvertOptions(
        model=model,
        out=out,
        rope=_scaling(options),
        target_context=options["target_context"],
        type=options["type_"],
        tensor_types=options["tensor_types"],
        imatrix=options["imatrix"],
        encoding=encoding,
        split=options["split"],
        force=options["force"],
        in_place=options["in_place"],
    )
    if options["recipe"] is None:
        return asked
    from ggext.gguf.writer import check_output

    if not _names_a_scaling(asked):
        return _with_recipe(asked, options["recipe"])
    check_output(options["recipe"], options["force"])
    return asked


def _names_a_scaling(asked: ConvertOptions) -> bool:
    return asked.rope is not None or asked.target_context is not None


def _with_recipe(asked: ConvertOptions, path: Path) -> ConvertOptions:
    """The request in the file; an encoding or types on the command line go before it."""
    from ggext.convert.recipe_file import read_request

    request = read_request(path)
    return replace(
        asked,
        rope=request.rope,
        target_context=request.target_context,
        encoding=asked.encoding or request.encoding,
        type=request.type if asked.type == "auto" else asked.type,
        tensor_types=request.tensor_types + asked.tensor_types,
    )


def _write_recipe(asked: ConvertOptions, options: dict[str, Any]) -> None:
    """Beside the model, where the command line names a scaling (else the recipe was read)."""
    if options["recipe"] is None or (
        options["target_context"] is None and _scaling(options) is None
    ):
        return
    from ggext.convert.recipe_file import Request, write_request
    from ggext.rope.scaling import RopeScaling

    rope = asked.rope or RopeScaling("yarn")  # what a --target-context alone means
    request = Request(rope, asked.target_context, asked.encoding, asked.type, asked.tensor_types)
    write_request(options["recipe"], request, asked.force)
    click.echo(f"wrote {options['recipe']}")


def _scaling(options: dict[str, Any]) -> RopeScaling | None:
    """The request on the command line; ``None`` if it names no method."""
    from ggext.rope.scaling import RopeScaling

    chosen: list[Method] = [m for m in _METHODS if options[m] is not None]
    if options["rope"] is not None:
        chosen.append(options["rope"])
    if len(chosen) > 1:
        raise UsageError(f"--{' and --'.join(chosen)} are different scalings; choose one")
    parameters = {k: options[k] for k in _PARAMETERS if options[k] is not None}
    if not chosen and options["target_context"] is None:
        if parameters:
            option = next(iter(parameters)).replace("_", "-")
            raise UsageError(f"--{option} changes a scaling; name one, for example --yarn 4")
        return None
    method = chosen[0] if chosen else "yarn"
    if method == "none" and options["target_context"] is not None:
        raise UsageError("--rope none and --target-context exclude each other; give one")
    factor = options.get(method)
    if factor is not None and factor < 1:
        raise UsageError(
            f"--{method} is {factor:g}; the factor multiplies the context and must be 1 or more"
        )
    if factor is None and method != "none" and options["target_context"] is None:
        raise UsageError(
            f"--rope {method} needs --target-context N, or give the factor: --{method} F"
        )
    return RopeScaling(method=method, factor=factor, **parameters)


def describe(plan: Plan, name: str | None = None) -> list[str]:
    """The plan in words, a line a thing. ``name``: of the model, ``None`` for that of its path."""
    from ggext.checkpoint.named import shown

    source = plan.source
    size = "in place" if plan.in_place else f"{plan.nbytes:,} bytes to write"
    lines = [f"{name or shown(source.path)}: {source.arch}, {len(source.tensors)} tensors, {size}"]
    if plan.scaling is None or plan.encoding is None:
        lines.append("rope: as in the file, unchanged")
    else:
        scaling, table = plan.scaling, plan.encoding
        parameters = ", ".join(
            f"{k.replace('_', ' ')} {v:g}"
            for k, v in scaling.given().items()
            if isinstance(v, (int, float))
        )
        lines.append(f"rope: {scaling.method}{' (' + parameters + ')' if parameters else ''}")
        context = plan.fields[f"{source.arch}.context_length"].value
        lines.append(f"context: {plan.geometry.trained_context:,} → {context:,} tokens")
        lines.append(
            f"encoding: {table.name}, worst frequency error {table.exactness.frequency_error:.1e}, "
            f"gain error {table.exactness.gain_error:.1e}, "
            f"{'shift-safe' if table.shift_safe else 'not shift-safe'}"
        )
        if table.elsewhere is not None:
            lines.append(
                f"in other programs: worst frequency error {table.elsewhere.frequency_error:.2g}"
                + (
                    ""
                    if table.exactness.is_exact
                    else "; in ggext it is the nearest that llama.cpp can do, not exact"
                )
            )
    if plan.types.quantization:
        matrix = f", importance matrix {plan.imatrix.path.name}" if plan.imatrix else ""
        lines.append(f"type: {plan.types.quantization} by llama.cpp's quantizer{matrix}")
    return lines + [f"note: {note}" for note in plan.notes]
