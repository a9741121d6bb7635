"""``ggext tune``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggext.cli import convert_options
from ggext.cli.groups import GroupedCommand, group
from ggext.cli.models import MODEL
from ggext.cli.numbers import NUMBER, SECONDS, TOKENS
from ggext.cli.process import STOPPED, note
from ggext.cli.scaling import asked_scaling

if TYPE_CHECKING:
    from ggext.rope.scaling import RopeScaling
    from ggext.tune.finish import Finished
    from ggext.tune.options import TuneOptions
    from ggext.tune.run import Tuning
    from ggext.tune.train import Step


def _factors(
    _: click.Context, __: click.Parameter, text: str | None
) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no list of factors such as 2,4"
        ) from None


_scaling = group("Scaling", *convert_options.BY_FACTOR, *convert_options.PARAMETERS)
_data = group(
    "Text",
    click.option(
        "--text",
        "texts",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="A file, or a folder with .txt, .md and .jsonl files. May be repeated.",
    ),
    click.option(
        "--pose",
        "rows",
        flag_value="pose",
        help="Short rows whose positions jump: cheap. [default beyond twice the trained length]",
    ),
    click.option(
        "--long", "rows", flag_value="long", help="Rows of the target length."
    ),
    click.option(
        "--window",
        type=TOKENS,
        metavar="N",
        help="Tokens of short rows and of those that jump [trained length].",
    ),
)
_training = group(
    "Training",
    click.option(
        "--lora", type=click.IntRange(1), metavar="R", help="Rank of the adapter [16]."
    ),
    click.option(
        "--full", is_flag=True, help="Train all weights, embeddings and norms too."
    ),
    click.option(
        "--steps",
        type=click.IntRange(1),
        default=100,
        show_default=True,
        metavar="N",
        help="Updates of the weights.",
    ),
    click.option(
        "--stages",
        callback=_factors,
        metavar="F,F",
        help="Factors that are trained one after the other, such as 2,4.",
    ),
    click.option(
        "--batch-tokens", type=TOKENS, metavar="N", help="Tokens of a step [8192]."
    ),
    click.option(
        "--learning-rate",
        type=NUMBER,
        metavar="X",
        help="[2e-4 for LoRA, 2e-5 for --full]",
    ),
    click.option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        default=True,
        help="Compute again in place of keeping, which takes a third longer. [on]",
    ),
    click.option(
        "--attention",
        type=click.Choice(["sdpa", "eager", "flash_attention_2"]),
        default="sdpa",
        show_default=True,
        help="transformers' implementation.",
    ),
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        metavar="N",
        help="Which rows come when.",
    ),
    click.option(
        "--launch",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE.yaml",
        help="Several processes: settings of accelerate launch.",
    ),
)
_output = group(
    "Output",
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Its folder.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in the folder."),
    click.option(
        "--save-every",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        metavar="N",
        help="Steps between checkpoints.",
    ),
    click.option(
        "--type",
        "type_",
        default="auto",
        metavar="TYPE",
        help="Of the GGUF file, as in convert.",
    ),
    click.option(
        "--adapter", is_flag=True, help="Write the adapter as a small GGUF file too."
    ),
    click.option(
        "--evaluation",
        "evaluation_seconds",
        default="10m",
        show_default=True,
        type=SECONDS,
        metavar="TIME",
        help="Time for the evaluation.",
    ),
    click.option(
        "--trials",
        type=click.IntRange(1),
        metavar="N",
        help="Texts of the target length that questions are asked on.",
    ),
    click.option(
        "--train-only",
        is_flag=True,
        help="End after training; --resume does the rest, anywhere.",
    ),
    click.option(
        "--check",
        is_flag=True,
        help="Train nothing: prove that CHECKPOINT, tuned by another program, has the scaling.",
    ),
)
_EXAMPLES = (
    (
        "ggext tune ./model --yarn 4 --text ./books",
        "an adapter for 4 times the trained length",
    ),
    ("ggext tune ./tuned --yarn 4 --check", "whether a checkpoint has that scaling"),
)


@click.command(
    cls=GroupedCommand,
    examples=_EXAMPLES,
    short_help="Fine-tune a model at a longer context, and evaluate it.",
)
@click.argument("checkpoint", type=MODEL)
@_scaling
@_data
@_training
@_output
def tune(checkpoint: Path, check: bool, **options: Any) -> None:
    """Train CHECKPOINT (a Hugging Face folder, or a model's id on the hub) at a longer context on
    your own text; bake, verify and evaluate what comes out.

    The RoPE table is proved before the first step, after the merge, and in the GGUF file. Ctrl-C
    ends after the running step; --resume goes on.
    """
    scaling = asked_scaling(options)
    if scaling is None:
        raise click.UsageError("name a scaling to train for, such as --yarn 4")
    if check:
        _check(checkpoint, scaling, options["target_context"])
        return
    from ggext.tune.launch import check_pairs, is_started, launch
    from ggext.tune.machine import check_packages

    check_packages()
    tune_options = _options(checkpoint, scaling, options)
    if tune_options.launch is not None:
        jumps = tune_options.rows != "long"
        check_pairs(
            tune_options.launch,
            lora=tune_options.lora is not None,
            jumps=jumps,
            attention=tune_options.attention,
        )
        if not is_started():
            sys.exit(launch(tune_options.launch, sys.argv[2:]))
    _run(tune_options, train_only=options["train_only"])


def _options(
    checkpoint: Path, scaling: RopeScaling, options: dict[str, Any]
) -> TuneOptions:
    from ggext.checkpoint.named import model_name, named_model
    from ggext.tune.options import LORA_RANK, TuneOptions

    if options["full"] and options["lora"]:
        raise click.UsageError("--full and --lora exclude each other; give one")
    name = f"{model_name(named_model(checkpoint))}-tuned"
    lora = None if options["full"] else options["lora"] or LORA_RANK
    return TuneOptions(
        model=checkpoint,
        texts=options["texts"],
        out=options["out"] or Path(name),
        scaling=scaling,
        target_context=options["target_context"],
        stages=options["stages"],
        lora=lora,
        type=options["type_"],
        **{
            name: options[name]
            for name in (
                "rows window steps batch_tokens learning_rate save_every gradient_checkpointing "
                "attention seed adapter resume evaluation_seconds trials launch"
            ).split()
        },
    )


def _check(checkpoint: Path, scaling: RopeScaling, target_context: int | None) -> None:
    from ggext.tune.check import check_checkpoint

    for line in check_checkpoint(checkpoint, scaling, target_context):
        click.echo(line)


def _run(tune_options: TuneOptions, *, train_only: bool) -> None:
    from ggext.tune.machine import peak_memory, return_freed_memory
    from ggext.tune.run import Tuning

    run = Tuning(tune_options)
    return_freed_memory()
    echo = click.echo if run.machine.is_first else _silent
    for line in describe(run):
        echo(line)
    run.begin()
    with _stopping(run):
        losses = run.train(lambda proof: echo(str(proof)), _shown(run, echo))
    peak = peak_memory(run.machine)
    if losses and peak is not None:
        echo(f"memory: at most {peak / 2**30:.1f} GiB were used")
    if run.interrupted:
        if run.machine.is_first:
            note(f"ggext: stopped; --resume continues the run in {tune_options.out}")
        sys.exit(STOPPED)
    if train_only:
        echo(
            "trained: the same with --resume and without --train-only goes on in "
            f"{tune_options.out}"
        )
    elif run.machine.is_first:
        report(run.finish(lambda text: note(f"  {text}")))


def _silent(_: str) -> None:
    """What other processes than the first say."""


def describe(run: Tuning) -> Iterator[str]:
    """What the run will do and what that takes."""
    from ggext.checkpoint.named import shown

    plan = run.plan
    options = run.options
    scaling = plan.rope.scaling
    yield (
        f"{shown(plan.folder)}: {plan.parameters:,} numbers, trained on {plan.rope.trained:,} "
        f"tokens; {scaling.method} by {scaling.factor:g} to {plan.rope.context:,}"
    )
    what = (
        "all weights" if options.lora is None else f"an adapter of rank {options.lora}"
    )
    rows = {
        "pose": f"rows of {plan.rows.window:,} tokens whose positions jump",
        "long": f"rows of {plan.rows.target:,} tokens",
    }[plan.rows.kind]
    yield (
        f"training {what} ({plan.trained:,} numbers): {options.steps} steps of "
        f"{plan.step_tokens * run.machine.processes:,} tokens, in {rows}, and 40 % short ones"
    )
    yield (
        f"memory: about {plan.memory / 2**30:.1f} GiB on {run.machine.name}, "
        f"{run.machine.processes} {'process' if run.machine.processes == 1 else 'processes'}"
    )
    yield run.texts
    yield from (f"note: {note}" for note in plan.notes)


def _shown(run: Tuning, echo: Callable[[str], None]) -> Callable[[int, Step], None]:
    def show(stage: int, step: Step) -> None:
        several = f"stage {stage}, " if len(run.plan.stages) > 1 else ""
        echo(f"  {several}step {step.number} of {step.steps}: loss {step.loss:.4f}")

    return show


@contextmanager
def _stopping(run: Tuning) -> Iterator[None]:
    """Ctrl-C ends the training after the running step; a second one the program."""

    def stop(_: int, __: object) -> None:
        signal.signal(signal.SIGINT, before)
        note("ggext: ending after this step; Ctrl-C again ends at once")
        run.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def report(done: Finished) -> None:
    """What was made, and whether it helped."""
    from ggext.cli.eval_table import as_table

    for proof in done.proofs:
        click.echo(str(proof))
    passed, checks = done.checks
    click.echo(f"verified: {passed} of {checks} checks within tolerance")
    click.echo(
        f"wrote {done.checkpoint} and {done.gguf} ({done.gguf.stat().st_size:,} bytes)"
    )
    for adapter in done.adapter:
        click.echo(f"wrote {adapter} ({adapter.stat().st_size:,} bytes)")
    click.echo(as_table(done.report))
    click.echo("")
    for line in done.verdict.lines():
        click.echo(line)
    click.echo(f"the whole report: {done.gguf.parent / 'report.html'}")
