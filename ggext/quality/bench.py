"""One setting, loaded: measures items on it, and how fast it reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from random import Random
from typing import TYPE_CHECKING, Any

from ggext.errors import UsageError
from ggext.quality import texts, words
from ggext.quality.items import Diverged, Item, Losses, Result
from ggext.quality.needles import ask, sample_maker, speaks_little
from ggext.quality.perplexity import SHORT, WINDOW, compare, nll, short_nll
from ggext.quality.prompts import PromptMaker
from ggext.quality.samples import Sample
from ggext.quality.settings import EvalOptions, Setting
from ggext.quality.texts import Piece
from ggext.runtime import llama
from ggext.runtime.closing import Closing
from ggext.runtime.context import SessionOptions
from ggext.runtime.engine import Model, Session
from ggext.runtime.memory.options import MemoryOptions
from ggext.runtime.scaled import scaling_overrides

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.scaled import Overrides

Progress = Callable[[int], None]

_PROBE = 256  # tokens that are read to learn the speed, then as many again


@dataclass(frozen=True)
class Speed:
    """Seconds of reading n tokens from an empty cache: linear · n + quadratic · n²."""

    linear: float
    quadratic: float

    def seconds(self, tokens: int) -> float:
        return self.linear * tokens + self.quadratic * tokens * tokens

    @classmethod
    def of(cls, tokens: int, first: float, both: float) -> Speed:
        """From the seconds that `tokens` and twice as many took."""
        quadratic = max(0.0, (both - 2 * first) / (2 * tokens * tokens))
        return cls(max(1e-7, first / tokens - quadratic * tokens), quadratic)


class Bench(Closing):
    """A loaded setting. ``n_ctx``: tokens of its context; ``eval_callback``: as
    `SessionOptions` has it; ``rotated``: see `SettingReport`. Raises ModelError where the context
    does not fit into the memory."""

    def __init__(
        self,
        setting: Setting,
        options: EvalOptions,
        n_ctx: int,
        eval_callback: Any = None,
    ) -> None:
        self.setting = setting
        self.options = options
        self._eval_callback = eval_callback
        self.model = Model.open(
            setting.path, options.gpu_layers, overrides=_overrides(setting)
        )
        try:
            with llama.listening() as log:
                self.session = Session(self.model, self.session_options(n_ctx))
            self.rotated = log.rotated()
            self.prompts = PromptMaker(self.model, options.form)
        except BaseException:
            self.model.close()
            raise

    def session_options(self, n_ctx: int) -> SessionOptions:
        setting = self.setting
        n_ctx = n_ctx if setting.when_full == "stop" else min(n_ctx, setting.context)
        return SessionOptions(
            n_ctx=n_ctx,
            threads=self.options.threads,
            kv_type=setting.kv_type,
            memory=MemoryOptions(when_full=setting.when_full),
            eval_callback=self._eval_callback,
        )

    def close(self) -> None:
        """Frees the model and its context. Further calls do nothing."""
        self.model.close()

    def cancel(self) -> None:
        """Stops what runs, from any thread: it raises CancelledError."""
        self.session.cancel()

    @cached_property
    def documents(self) -> list[tuple[str, str]]:
        """Name and text of each; of the embedded document where the user gave none."""
        given = self.options.texts
        if not given:
            return [("embedded text", texts.embedded_text())]
        return [(path.name, texts.read_text(path)) for path in given]

    @property
    def has_documents(self) -> bool:
        """Whether the user gave some."""
        return bool(self.options.texts)

    @property
    def makes_texts(self) -> bool:
        """Whether texts of any length are made, in the embedded model's own language."""
        return not self.has_documents and speaks_little(self.model)

    @cached_property
    def longest_text(self) -> int | None:
        """Tokens of the longest document, None where texts are made."""
        return None if self.makes_texts else max(self.text_lengths)

    @cached_property
    def text_lengths(self) -> list[int]:
        """Tokens of each document."""
        marks = self.options.marks
        return [
            len(self.model.tokenize(text, parse_special=marks))
            for _, text in self.documents
        ]

    def sample(self, item: Item) -> Sample:
        """The text and questions of a task's item; the same for every setting of a vocabulary."""
        rng = Random(f"{self.options.seed} {item.task} {item.length} {item.index}")
        return self._make(item.task, item.length, rng)

    @cached_property
    def _make(self) -> Callable[[str, int, Random], Sample]:
        path = self.options.questions
        own_questions = () if path is None else texts.read_questions(path)
        filler = words.sentences
        if self.options.texts:
            sentences = texts.filler_of([text for _, text in self.documents])
            filler = partial(texts.sentences_from, sentences)
        return sample_maker(self.prompts, filler, own_questions, self.options.needles)

    def piece(self, item: Item) -> Piece:
        """The tokens of a document's item; the same for every setting of a vocabulary."""
        if item.kind == "protocol":
            return self._protocol_pieces(item.length)[item.index]
        if self.makes_texts:
            return texts.little_piece(
                self.model, item.length, item.index, self.options.seed
            )
        return self._pieces(item.length)[item.index]

    def pieces(self, length: int) -> int:
        """How many pieces of a length there are. Raises UsageError for none."""
        return 1 << 20 if self.makes_texts else len(self._pieces(length))

    def chunks(self, length: int) -> int:
        """How many chunks or documents the protocol has. Raises UsageError for too few."""
        return len(self._protocol_pieces(length))

    @cached_property
    def _pieces(self) -> Callable[[int], list[Piece]]:
        marks = self.options.marks
        return lru_cache(4)(
            lambda length: texts.pieces(self.model, self.documents, length, marks=marks)
        )

    @cached_property
    def _protocol_pieces(self) -> Callable[[int], list[Piece]]:
        return lru_cache(4)(self._cut_for_protocol)

    def _cut_for_protocol(self, length: int) -> list[Piece]:
        if self.options.protocol == "llama.cpp":
            text = "".join(text for _, text in self.documents)
            return texts.llama_cpp_pieces(self.model, text, length)
        # YaRN's: the beginning of each document that is long enough.
        return texts.beginnings(self.model, self.documents, length)

    def measure(self, item: Item, progress: Progress) -> Result:
        """What an item comes to. `progress`: tokens done of it. Raises CancelledError,
        ContextFullError, ModelError."""
        if item.kind == "task":
            sample = self.sample(item)
            return list(
                ask(self.session, self.prompts, sample, lambda done, _: progress(done))
            )
        piece = self.piece(item)
        if item.kind == "short":
            short, window = short_windows(self.setting)
            values = short_nll(self.session, piece.tokens, short, window, progress)
        else:
            values = nll(self.session, piece.tokens, piece.first, progress)
        return Losses(piece.name, _narrow(values))

    def diverge(self, item: Item, first: Session, progress: Progress) -> Diverged:
        """How this setting differs from another's session on a piece."""
        piece = self.piece(item)
        divergence = compare(first, self.session, piece.tokens, progress)
        return Diverged(
            piece.name,
            _narrow(divergence.kl),
            _narrow(divergence.same_top),
            _narrow(divergence.delta_p),
        )

    def speed(self, probe: int = _PROBE) -> Speed:
        """Measured now, on a text of twice `probe` tokens."""
        room = min(self.session.n_ctx, 2 * probe) // 2
        words = self.model.tokenize(texts.embedded_text())[: 2 * room]
        words = (words * (2 * room // len(words) + 1))[: 2 * room]
        self.session.clear()
        start = time.perf_counter()
        self.session.evaluate(words[:room])
        first = time.perf_counter() - start
        self.session.evaluate(words)
        return Speed.of(room, first, time.perf_counter() - start)


def short_windows(setting: Setting) -> tuple[int, int]:
    """LongPPL's short context and window, in tokens; smaller for a model of a small context."""
    short = min(SHORT, max(64, setting.trained // 2))
    return short, short * WINDOW // SHORT


def _overrides(setting: Setting) -> Overrides | None:
    if setting.scaling is None:
        return None
    return scaling_overrides(setting.header, setting.scaling)


def _narrow(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float32]:
    import numpy as np

    return np.asarray(values, np.float32)


def check_vocabularies(sizes: Sequence[int]) -> None:
    """Raises UsageError where settings that are to be compared token by token have vocabularies of
    different sizes."""
    if len(set(sizes)) > 1:
        raise UsageError(
            f"the files have vocabularies of {sorted(set(sizes))} tokens: they cannot be compared "
            "token by token"
        )
