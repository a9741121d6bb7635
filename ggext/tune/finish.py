"""The end of a run: merge, bake, prove, and measure before and after."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.named import model_name
from ggext.convert import ConvertOptions, convert
from ggext.errors import ModelError
from ggext.gguf.open import read_gguf
from ggext.gguf.rope import effective_table
from ggext.gguf.writer import private_folder_beside
from ggext.quality.page import page
from ggext.quality.run import Evaluation, OnProgress
from ggext.quality.run import Progress as Measured
from ggext.quality.settings import EvalOptions
from ggext.rope.scaling import RopeScaling
from ggext.tune.adapter import write_adapter
from ggext.tune.model import merged, save
from ggext.tune.tables import TableProof, prove
from ggext.tune.verdict import Verdict, verdict_of
from ggext.verify import verify

if TYPE_CHECKING:
    from ggext.quality.report import EvalReport
    from ggext.tune.options import TuneOptions
    from ggext.tune.plan import TunePlan
    from ggext.tune.state import RunFolder

#: Tokens of the texts on which the short length is measured, or the trained length.
_SHORT = 1024
#: Needles of a text, if its short texts have so many tokens for each: a reading is what costs.
_NEEDLES, _NEEDLE_TOKENS = 16, 48
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Finished:
    """What a run made."""

    gguf: Path
    checkpoint: Path
    # The small GGUF file and the one that it is for, where it was asked for.
    adapter: tuple[Path, ...]
    proofs: tuple[TableProof, ...]
    # Of the GGUF file: checks that passed, and all.
    checks: tuple[int, int]
    report: EvalReport
    verdict: Verdict


def merge(
    plan: TunePlan, tuned: Path, folder: RunFolder, *, adapter: bool
) -> TableProof:
    """The tuned checkpoint, with a table that is proved."""
    model, proof = merged(plan.folder, plan.rope, tuned, adapter=adapter)
    shutil.rmtree(folder.checkpoint, ignore_errors=True)
    save(model, plan.folder, folder.checkpoint)
    return proof


def bake(
    plan: TunePlan, folder: RunFolder, kind: str
) -> tuple[Path, TableProof, tuple[int, int]]:
    """The tuned GGUF file, with a table that is proved, and the rest of what can be."""
    scaling = plan.rope.scaling
    name = f"{model_name(plan.folder)}-{scaling.method}{scaling.factor:g}-tuned.gguf"
    path = folder.path / name
    with private_folder_beside(path) as beside:
        unscaled = _with_config(folder.checkpoint, plan.folder, beside)
        _convert(unscaled, path, plan.rope.scaling, kind)
    proof = prove("in the GGUF file", plan.rope.table, effective_table(read_gguf(path)))
    report = verify(path)
    wrong = [check for check in report.checks if check.required and not check.passed]
    if wrong:
        raise ModelError(
            f"{path} does not do what was asked: {wrong[0].level}, {wrong[0].quantity} is "
            f"{wrong[0].value:.2g}; ggext verify {path} shows more"
        )
    return (
        path,
        proof,
        (sum(check.passed for check in report.checks), len(report.checks)),
    )


def small_file(plan: TunePlan, tuned: Path, gguf: Path, kind: str) -> tuple[Path, ...]:
    """The adapter, and the untuned file that it is for."""
    base = gguf.with_name(gguf.name.replace("-tuned.gguf", "-untuned.gguf"))
    out = gguf.with_name(gguf.name.replace("-tuned.gguf", "-adapter.gguf"))
    _convert(plan.folder, base, plan.rope.scaling, kind)
    write_adapter(tuned, plan.folder, base, out)
    return out, base


def _with_config(tuned: Path, pretrained: Path, beside: Path) -> Path:
    """The tuned weights under the pretrained configuration: so the recipe in the file is that of
    the model before it was tuned, from which the scaling starts."""
    folder = beside / "checkpoint"
    folder.mkdir()
    for file in tuned.iterdir():
        source = pretrained / file.name if file.name == "config.json" else file
        try:
            os.link(source, folder / file.name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, folder / file.name)
    return folder


def _convert(source: Path, out: Path, rope: RopeScaling, kind: str) -> Path:
    convert(ConvertOptions(source, out, rope, type=kind, force=True))
    return out


def file_type(options: TuneOptions, folder: Path) -> str:
    """The type of the GGUF file: the one asked for, or the checkpoint's own."""
    if options.type != "auto":
        return options.type
    config = json.loads((folder / "config.json").read_text("utf-8"))
    inner = config.get("text_config") or {}
    dtype = str(config.get("dtype") or config.get("torch_dtype") or inner.get("dtype"))
    return _TYPES.get(dtype.removeprefix("torch."), "f32")


def evaluate(
    plan: TunePlan,
    gguf: Path,
    folder: RunFolder,
    texts: tuple[Path, ...],
    options: TuneOptions,
    progress: Progress,
) -> tuple[EvalReport, Verdict]:
    """Three files on the same items: untuned with the same scaling, tuned, pretrained."""
    kind = file_type(options, plan.folder)
    short = min(plan.rope.trained, _SHORT)
    trials = options.trials
    per_length = None if trials is None else (2 * trials, trials)
    eval_options = EvalOptions(
        lengths=(short, plan.rope.context),
        texts=texts,
        marks=True,
        trials=per_length,
        needles=min(_NEEDLES, short // _NEEDLE_TOKENS),
        price=False,  # which the pretrained file shows, as one of the three
        seed=options.seed,
        budget=options.evaluation_seconds,
    )
    with private_folder_beside(gguf) as beside:
        untuned = _convert(
            plan.folder, beside / "untuned.gguf", plan.rope.scaling, kind
        )
        pretrained = _convert(
            plan.folder, beside / "pretrained.gguf", RopeScaling(), kind
        )
        files = [untuned, gguf, pretrained]
        with Evaluation(
            files, eval_options, folder.path / "evaluation.jsonl"
        ) as evaluation:
            evaluation.run(_once_an_item(progress))
            report = evaluation.report()
            before, tuned, unscaled = evaluation.plan.settings
            verdict = verdict_of(
                evaluation.differences(before, tuned),
                evaluation.differences(unscaled, tuned),
                evaluation.differences(unscaled, before),
                plan.rope.context,
                short,
            )
            html = page(report, evaluation.plan, "ggext tune")
    folder.write("report.html", html)
    folder.write("report.json", json.dumps(_as_dict(report, verdict), indent=2))
    return report, verdict


def _once_an_item(progress: Progress) -> OnProgress:
    """A line when an item begins, and none for its tokens."""
    reported = -1

    def show(now: Measured) -> None:
        nonlocal reported
        if now.done != reported:
            reported = now.done
            progress(f"{now.done + 1} of {now.total}: {now.what}")

    return show


def _as_dict(report: EvalReport, verdict: Verdict) -> dict[str, Any]:
    return {
        "outcome": verdict.outcome,
        "lines": verdict.lines(),
        "evaluation": report.as_dict(),
    }
