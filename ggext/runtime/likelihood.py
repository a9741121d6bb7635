"""Logits → likelihoods, in float64, in blocks that stay small whatever the vocabulary.

The one place where the logarithm of a softmax is computed: perplexity, teacher-forced answers and
the comparison of two sets of logits all come from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggext.errors import ModelError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.engine import Progress, Session

_BLOCK = 1 << 20  # logits that are widened at a time: 8 MiB in float64


@dataclass(frozen=True)
class Scores:
    """What a model made of a run of tokens, (n_tokens,) each."""

    # -log p of each token, natural logarithm.
    nll: NDArray[np.float64]
    # Whether greedy decoding would have chosen it.
    greedy: NDArray[np.bool_]


@dataclass(frozen=True)
class Divergence:
    """How two sets of logits differ, (n_tokens,) each."""

    # KL(expected ‖ actual) in nats.
    kl: NDArray[np.float64]
    # Whether both have the same likeliest token.
    same_top: NDArray[np.bool_]
    # Probability of the token that follows: actual - expected.
    delta_p: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[Divergence]) -> Divergence:
        """The parts one after another."""
        import numpy as np

        return cls(
            np.concatenate([part.kl for part in parts]),
            np.concatenate([part.same_top for part in parts]),
            np.concatenate([part.delta_p for part in parts]),
        )


def scores(
    session: Session,
    tokens: Sequence[int],
    first: int = 1,
    progress: Progress | None = None,
) -> Iterator[Scores]:
    """How likely tokens[first:] are, each after all before it, batch by batch.

    Of a text that is longer than the context, what the policy keeps is what each token sees.
    Nothing but a batch's logits is held. What was scored before a cancel or an error stays cached:
    with `first` at that token, the rest is scored without reading it again. `progress` counts the
    tokens before `first`. Raises UsageError, ContextFullError, CancelledError, and ModelError for
    logits that are not numbers.
    """
    if not 1 <= first <= len(tokens):
        raise UsageError(
            f"first is {first}, but must be from 1 to {len(tokens)}, the tokens"
        )
    place = first
    for rows in session.logit_rows(tokens[:-1], first - 1, progress=progress):
        yield score(rows, tokens[place : place + len(rows)], place - 1)
        place += len(rows)


def score(
    rows: NDArray[np.float32],
    following: Sequence[int] | NDArray[np.int64],
    position: int = 0,
) -> Scores:
    """Scores the tokens that follow `rows` of logits, (n_tokens, n_vocab).

    `position`: of the first row in its text, for the message. Raises ModelError for logits that
    are not numbers.
    """
    import numpy as np

    tokens = np.asarray(following, np.int64)
    nll = np.empty(len(tokens))
    greedy = np.empty(len(tokens), np.bool_)
    for start, block in _blocks(rows[: len(tokens)]):
        part = slice(start, start + len(block))
        log_p = log_softmax(block)
        nll[part] = -log_p[np.arange(len(block)), tokens[part]]
        greedy[part] = block.argmax(axis=1) == tokens[part]
    wrong = np.flatnonzero(np.isnan(nll))
    if len(wrong):
        raise ModelError(
            f"the logits after token {position + int(wrong[0]):,} are not numbers (NaN): the "
            "weights are damaged, or a value overflows in this KV type or on this device; verify "
            "the file, or take kv type f32"
        )
    return Scores(nll, greedy)


def diverge(
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    following: Sequence[int] | NDArray[np.int64] | None = None,
) -> Divergence:
    """Compares two sets of logits, (n_tokens, n_vocab) each.

    `following`: the tokens after each row; None: ``delta_p`` is that of expected's likeliest.
    """
    import numpy as np

    count = len(expected)
    kl = np.empty(count)
    same = np.empty(count, np.bool_)
    delta = np.empty(count)
    for start, block in _blocks(expected):
        part = slice(start, start + len(block))
        log_p = log_softmax(block)
        log_q = log_softmax(actual[part])
        p = np.exp(log_p)
        # Where p is 0 its term is 0, also where log p is -inf.
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (log_p - log_q), 0.0)
        kl[part] = terms.sum(axis=1)
        top = log_p.argmax(axis=1)
        same[part] = top == log_q.argmax(axis=1)
        token = top if following is None else np.asarray(following, np.int64)[part]
        each = np.arange(len(block))
        delta[part] = np.exp(log_q[each, token]) - p[each, token]
    return Divergence(kl, same, delta)


def log_softmax(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithm of the softmax of each row, float64, (n_tokens, n_vocab); NaN in a row whose
    largest logit is no finite number."""
    import numpy as np

    shifted = rows.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted -= shifted.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _blocks(rows: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]
