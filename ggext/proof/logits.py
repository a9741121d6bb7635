"""Level ``logits``: llama.cpp on the file against transformers on the checkpoint, the same
tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.errors import GgufError, UsageError
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import prevailing_type, type_name
from ggext.llama_cpp_facts.indexer import IN_BLOCKS
from ggext.proof.report import Check, Expected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Mean KL in nats that the weights' own rounding explains (measured on a Llama of 0.26 M
#: parameters, see docs/verify.md); only float32 weights show the RoPE alone.
KL_TOLERANCE = {"F32": 1e-6, "F16": 1e-5, "BF16": 1e-3, "Q8_0": 1e-2}
KL_TOLERANCE_OTHER = 1.0
DEFAULT_TOKENS = 2048


def check_logits(
    gguf: GgufFile,
    reference: Path,
    expected: Expected,
    tokens: int | None,
    tolerance: float | None,
    progress: Callable[[str], None],
) -> tuple[list[Check], list[str]]:
    """In the trained window and beyond, and a note for what was not measured."""
    context = expected.table.context
    if tokens is not None and tokens > context:
        raise UsageError(f"tokens={tokens} is more than the context of {context}")
    count = tokens or min(context, DEFAULT_TOKENS)
    ids, logits = _logits_of_file(gguf, count, progress)
    reference_logits = _logits_of_checkpoint(reference, expected, ids, progress)
    if logits.shape != reference_logits.shape:
        raise GgufError(
            f"{gguf.path} has {logits.shape[1]} tokens in its vocabulary, {reference} "
            f"{reference_logits.shape[1]}"
        )
    window = expected.geometry.trained_context
    checks = []
    notes = []
    for name, rows in (
        ("in the trained window", slice(0, window)),
        ("beyond it", slice(window, None)),
    ):
        if len(logits[rows]) == 0:
            notes.append(
                f"logits {name}: not measured; {count} tokens do not pass {window}: raise tokens=N"
            )
            continue
        checks.append(
            _check(gguf, name, reference_logits[rows], logits[rows], tolerance)
        )
    return checks, notes


def _logits_of_file(
    gguf: GgufFile, count: int, progress: Callable[[str], None]
) -> tuple[list[int], NDArray[np.float32]]:
    """The token ids of a sample text, and llama.cpp's logits after each: (count, vocabulary)."""
    from ggext.proof import reference as judge
    from ggext.runtime.engine import Model, Session, SessionOptions

    progress(f"llama.cpp: {count} tokens")
    # 16-bit keys and values would be measured as if they were an error of the file; flash
    # attention has some, and is left out where the model is then the same
    flash = gguf.arch in IN_BLOCKS
    options = SessionOptions(n_ctx=count, kv_type="f32", flash_attention=flash)
    with Model.open(gguf.path) as model:
        ids = judge.sample_tokens(model, count)
        with Session(model, options) as session:
            return ids, session.logits(ids)


def _logits_of_checkpoint(
    reference: Path, expected: Expected, ids: list[int], progress: Callable[[str], None]
) -> NDArray[np.float32]:
    """transformers' logits after each of the tokens: (tokens, vocabulary)."""
    from ggext.proof import reference as judge

    progress(f"transformers: {len(ids)} tokens")
    return judge.transformers_logits(
        reference, expected.scaling, expected.geometry, ids
    )


def _check(
    gguf: GgufFile,
    name: str,
    reference_logits: NDArray[np.float32],
    logits: NDArray[np.float32],
    tolerance: float | None,
) -> Check:
    """The divergence of some rows, both (tokens, vocabulary), against what rounding explains."""
    import numpy as np

    from ggext.proof import reference as judge

    weights = "no"
    if gguf.tensors:
        kind = prevailing_type((t.type, t.shape) for t in gguf.tensors.values())
        weights = type_name(kind)
    limit = tolerance
    if limit is None:
        limit = KL_TOLERANCE.get(weights, KL_TOLERANCE_OTHER)
    kl, difference = judge.divergence(reference_logits, logits)
    detail = (
        f"{len(kl)} tokens, {weights} weights, worst |Δ logit| {difference:.1e}, worst KL "
        f"{kl.max():.1e}"
    )
    if weights == "F32" or not _chooses_experts(gguf):
        return Check("logits", f"mean KL {name}, nats", float(kl.mean()), limit, detail)
    detail += (
        f", mean {kl.mean():.1e}; {int((kl > limit).sum())} tokens above the limit"
    )
    median = float(np.median(kl))
    return Check("logits", f"median KL {name}, nats", median, limit, detail)


def _chooses_experts(gguf: GgufFile) -> bool:
    """Whether rounding of the weights can make tokens take other experts: then a few of them have a
    KL of their own kind, which decides a mean and not a median (measured: 1 of 512 tokens with 0.73
    nats made a mean of 1.5e-3 of a median of 7.8e-5 in bf16)."""
    return bool(gguf.arch_keys().get("expert_count", 0))
