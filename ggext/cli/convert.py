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

from ggext.cli import convert_options
from ggext.cli.groups import GroupedCommand
from ggext.cli.models import MODEL
from ggext.cli.process import note
from ggext.cli.scaling import asked_scaling

if TYPE_CHECKING:
    from ggext.convert import ConvertOptions, Plan


@click.command(
    cls=GroupedCommand,
    examples=convert_options.EXAMPLES,
    short_help="Bake a RoPE scaling into a GGUF file.",
)
@click.argument("model", type=MODEL)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@convert_options.scaling
@convert_options.output
@convert_options.source
@convert_options.fine
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
    conversion = _options(model, out, options)
    if options["card"] is not None:
        from ggext.cli.eval import check_folder

        check_folder(options["card"])
    by_ggext = options["via_llama_cpp"] is None
    revision = options["revision"]
    check = partial(
        check_family,
        replaced=conversion.replaces_scaling,
        gain_replaced=conversion.attention_factor is not None,
    )
    if by_ggext and options["dry_run"]:
        named = click.get_current_context().with_resource(
            planned_model(model, revision, check=check)
        )
    else:
        checked = check if by_ggext else None
        named = named_model(model, revision, show_progress=True, check=checked)
    conversion = replace(conversion, model=named)
    if by_ggext:
        _convert(conversion, options)
    else:
        _convert_via_llama_cpp(conversion, options)


def _without_collector() -> None:
    """A vocabulary is some 100,000 objects, none of them in a circle: looking for circles takes 30
    ms while it is made, and as long again when Python ends."""
    gc.disable()
    click.get_current_context().call_on_close(gc.enable)
    atexit.register(gc.freeze)


def _convert(
    conversion: ConvertOptions, options: dict[str, Any], name: str | None = None
) -> Plan:
    """``name``: of the model, where what is read is not the user's own file."""
    from ggext.cli.convert_report import describe, echo_wrapped, ready
    from ggext.cli.progress import transfer
    from ggext.convert import execute, plan

    planned = plan(conversion)
    if options["dry_run"]:
        _, late = planned.completed()  # for its notes and errors
        planned = replace(planned, notes=(*planned.notes, *late))
    for line in describe(planned, name):
        echo_wrapped(line)
    if options["dry_run"]:
        exists = planned.out.exists() and not planned.in_place and not options["force"]
        if exists:
            click.echo(f"note: {planned.out} exists; --force replaces it")
        click.echo("dry run: nothing was written")
        return planned
    printed = len(planned.notes)
    with transfer(planned.nbytes, planned.out.name) as progress:
        done = execute(planned, progress)
    for text in done.notes[printed:]:
        echo_wrapped(f"note: {text}")
    if done.rounding.numbers:
        click.echo(
            f"folding: rounding of the query weights rms {done.rounding.rms:.1e}, worst "
            f"{done.rounding.worst:.1e}, relative"
        )
    for path in done.files:
        click.echo(
            f"{'changed' if done.in_place else 'wrote'} {path} ({path.stat().st_size:,} bytes"
            f"{': ' if done.how else ''}{done.how})"
        )
    if done.in_place:
        click.echo(f"ggext undo {done.out} takes it back")
    for line in ready(done):
        click.echo(line)
    _write_recipe(conversion, options)
    if options["card"] is not None:
        from ggext.cli.eval import write_card

        write_card(done.files[0], options["card"])
    return done


def _convert_via_llama_cpp(conversion: ConvertOptions, options: dict[str, Any]) -> None:
    """What is written is verified at once: ggext has not read this checkpoint itself."""
    from ggext.checkpoint.named import shown
    from ggext.convert.llama_cpp_converter import converted

    name = shown(conversion.model)
    note(f"{name}: llama.cpp's converter runs")
    with converted(conversion, options["via_llama_cpp"]) as through:
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
        note(
            f"WRONG: {check.level}, {check.quantity}: {check.value:.2g}, at most "
            f"{check.tolerance:.2g}"
        )
    click.echo(
        f"verified: {len(report.checks) - len(wrong)} of {len(report.checks)} checks within "
        "tolerance; "
        f"ggext verify {out} shows them"
    )
    status = 0 if report.passed else 1
    sys.exit(status)


def _options(model: Path, out: Path | None, options: dict[str, Any]) -> ConvertOptions:
    from ggext.convert import ConvertOptions
    from ggext.rope.recipe import COMMAND_LINE

    encoding = None if options["encoding"] == "auto" else options["encoding"]
    conversion = ConvertOptions(
        model=model,
        out=out,
        rope=asked_scaling(options),
        target_context=options["target_context"],
        type=options["type_"],
        tensor_types=options["tensor_types"],
        imatrix=options["imatrix"],
        encoding=encoding,
        split=options["split"],
        force=options["force"] or options["dry_run"],
        in_place=options["in_place"],
        attention_factor=_gain_alone(options),
        asked_by=COMMAND_LINE,
    )
    if options["recipe"] is None:
        return conversion
    from ggext.gguf.writer import check_output

    if not _names_a_scaling(conversion):
        return _with_recipe(conversion, options["recipe"])
    check_output(options["recipe"], options["force"])
    return conversion


def _names_a_scaling(conversion: ConvertOptions) -> bool:
    return conversion.rope is not None or conversion.target_context is not None


def _with_recipe(conversion: ConvertOptions, path: Path) -> ConvertOptions:
    """The request in the file; an encoding, an attention factor or types on the command line go
    before it."""
    from ggext.convert.recipe_file import read_request

    request = read_request(path)
    rope = request.rope
    if conversion.attention_factor is not None:
        rope = replace(rope, attention_factor=conversion.attention_factor)
    written_type = request.type if conversion.type == "auto" else conversion.type
    return replace(
        conversion,
        rope=rope,
        target_context=request.target_context,
        encoding=conversion.encoding or request.encoding,
        type=written_type,
        tensor_types=request.tensor_types + conversion.tensor_types,
        attention_factor=None,
    )


def _write_recipe(conversion: ConvertOptions, options: dict[str, Any]) -> None:
    """Without the model, where the command line names a scaling (else the recipe was read)."""
    if options["recipe"] is None or (
        options["target_context"] is None and asked_scaling(options) is None
    ):
        return
    from ggext.convert.recipe_file import Request, write_request
    from ggext.rope.scaling import RopeScaling

    rope = conversion.rope or RopeScaling("yarn")  # what a --target-context alone means
    request = Request(
        rope,
        conversion.target_context,
        conversion.encoding,
        conversion.type,
        conversion.tensor_types,
    )
    write_request(options["recipe"], request, conversion.force)
    click.echo(f"wrote {options['recipe']}")


def _gain_alone(options: dict[str, Any]) -> float | None:
    """The attention factor, where it changes the model's own scaling: no other is asked for."""
    named = (
        options["rope"],
        options["target_context"],
        *map(options.get, convert_options.METHODS),
    )
    return (
        None
        if any(value is not None for value in named)
        else options["attention_factor"]
    )
