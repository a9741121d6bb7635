"""Level ``logits``: llama.cpp on the file against transformers on the checkpoint, the same
tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ggext.errors import GgufError, UsageError
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import prevailing_type, type_name
from ggext.proof.report import Check, Wanted

#: Mean KL in nats that the weights' own rounding explains (measured on a Llama of 0.26 M
#: parameters, see docs/verify.md); only float32 weights show the RoPE alone.
KL_TOLERANCE = {"F32": 1e-6, "F16": 1e-5, "BF16": 1e-3, "Q8_0": 1e-2}
KL_TOLERANCE_OTHER = 1.0
DEFAULT_TOKENS = 2048


def check_logits(
    gguf: GgufFile,
    reference: Path,
    wanted: Wanted,
    tokens: int | None,
    tolerance: float | None,
    notes: list[str],
    progress: Callable[[str], None],
) -> list[Check]:
    """In the trained window and beyond. ``notes`` gets a line for what was not measured."""
    import numpy as np

    from ggext.proof import reference as judge
    from ggext.runtime.engine import Model, Session, SessionOptions

    context = wanted.table.context
    if tokens is not None and tokens > context:
        raise UsageError(f"tokens={tokens} is more than the context of {context}")
    count = tokens or min(context, DEFAULT_TOKENS)
    progress(f"llama.cpp: {count} tokens")
    with Model.open(gguf.path) as model:
        ids = judge.sample_tokens(model, count)
        # 16-bit keys and values would be measured as if they were an error of the file
        with Session(
            model, SessionOptions(n_ctx=count, kv_type="f32", flash_attention=False)
        ) as session:
            logits = session.logits(ids)
    progress(f"transformers: {count} tokens")
    expected = judge.transformers_logits(
        reference, wanted.scaling, wanted.geometry, ids
    )
    if logits.shape != expected.shape:
        raise GgufError(
            f"{gguf.path} has {logits.shape[1]} tokens in its vocabulary, {reference} "
            f"{expected.shape[1]}"
        )
    weights = (
        type_name(prevailing_type((t.type, t.shape) for t in gguf.tensors.values()))
        if gguf.tensors
        else "no"
    )
    limit = (
        tolerance
        if tolerance is not None
        else KL_TOLERANCE.get(weights, KL_TOLERANCE_OTHER)
    )
    by_median = weights != "F32" and _chooses_experts(gguf)
    window = wanted.geometry.trained_context
    checks = []
    for name, rows in (
        ("in the trained window", slice(0, window)),
        ("beyond it", slice(window, None)),
    ):
        if len(logits[rows]) == 0:
            notes.append(
                f"logits {name}: not measured; {count} tokens do not pass {window}: raise tokens=N"
            )
            continue
        kl, difference = judge.divergence(expected[rows], logits[rows])
        detail = (
            f"{len(kl)} tokens, {weights} weights, worst |Δ logit| {difference:.1e}, worst KL "
            f"{kl.max():.1e}"
        )
        if by_median:
            detail += f", mean {kl.mean():.1e}; {int((kl > limit).sum())} tokens above the limit"
        value = float(np.median(kl) if by_median else kl.mean())
        statistic = "median" if by_median else "mean"
        checks.append(
            Check("logits", f"{statistic} KL {name}, nats", value, limit, detail)
        )
    return checks


def _chooses_experts(gguf: GgufFile) -> bool:
    """Whether rounding of the weights can make tokens take other experts: then a few of them have a
    KL of their own kind, which decides a mean and not a median (measured: 1 of 512 tokens with 0.73
    nats made a mean of 1.5e-3 of a median of 7.8e-5 in bf16)."""
    return bool(gguf.arch_keys().get("expert_count", 0))
