"""The result as a section of a model card, in Markdown."""

from __future__ import annotations

from ggext._version import __version__
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT
from ggext.search.result import SearchResult


def card(result: SearchResult, command: str) -> str:
    """Heading, the numbers of both tables, the verdict and the command; for README.md of a model.

    The verdict is written down whatever it is.
    """
    reach = f"{result.trained_context:,} → {result.target_context:,} tokens"
    how = f"{len(result.evaluations)} tables measured, seed {result.seed}"
    lines = ["## Search for a better RoPE table", ""]
    lines += [f"{reach}, loss on {result.objective} in nats, {how}.", ""]
    lines += ["| | YaRN | best table |", "| --- | --- | --- |"]
    pairs = ((result.yarn, result.yarn_scaling), (result.best, result.scaling))
    rows = [
        ("factor", *(f"{scaling.factor:.6g}" for _, scaling in pairs)),
        (
            "attention factor",
            *(f"{scaling.attention_factor:.6g}" for _, scaling in pairs),
        ),
        ("blended pairs", *(f"{point.first} to {point.last}" for point, _ in pairs)),
    ]
    verdict = result.verdict
    if verdict is not None:
        rows.append(
            ("held-out loss", f"{verdict.yarn_loss:.4f}", f"{verdict.loss:.4f}")
        )
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if verdict is not None:
        gap = verdict.difference
        interval = f"{gap.value:+.4f} nats, 95 % {gap.low:+.4f} to {gap.high:+.4f}"
        short = f"{100 * verdict.short_rise:+.2f} %"
        lines += ["", f"Paired difference on {gap.units} held-out texts: {interval}."]
        lines += [f"Loss on short texts: {short}."]
    words = (
        "This file has the best table."
        if result.accepted
        else f"YaRN stays: {result.reason}."
    )
    made = f"Searched with ggext {__version__} on llama.cpp {LLAMA_CPP_COMMIT}:"
    return "\n".join([*lines, "", words, "", made, "", f"    {command}", ""])
