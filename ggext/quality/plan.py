"""Which items are measured on which setting, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggext.errors import RopeError, UsageError
from ggext.quality.bench import Bench, Speed, check_vocabularies
from ggext.quality.items import Item
from ggext.quality.settings import EvalOptions, Protocol, Setting, lengths_for, settings
from ggext.runtime.scaled import scaling_overrides

#: Tokens of the texts on which the price at a short context is measured.
_SHORT = 1024
_SHORT_EMBEDDED = 256  # of which the embedded document has three
#: More are not worth their time.
_MOST_TRIALS, _MOST_DOCUMENTS, _SHORT_TEXTS = 100, 8, 8
#: Texts below which a length is left out rather than measured badly.
_FEW = 5
#: Questions after a text, their answers and what else llama.cpp does.
_OVERHEAD = 1.15


@dataclass(frozen=True)
class Plan:
    """What a run measures and about how long it takes."""

    # Those of the report, and after them those that only the price at a short context needs.
    settings: tuple[Setting, ...]
    baselines: tuple[Setting, ...]
    # Tokens, rising.
    lengths: tuple[int, ...]
    # Texts for each task, by length.
    trials: Mapping[int, int]
    # Texts for each perplexity.
    documents: int
    # In the order in which they are measured.
    items: tuple[tuple[Setting, Item], ...]
    # Of each setting's key.
    speeds: Mapping[str, Speed]
    # Of each setting's key; see `SettingReport.rotated`.
    rotated: Mapping[str, tuple[str, ...]]
    # Tokens of the short texts; None: there is no price to measure.
    short: int | None
    # See `EvalOptions`.
    protocol: Protocol | None
    # Chunks or documents of the protocol.
    chunks: int
    # What cannot be measured, and why.
    notes: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens to evaluate in all, about."""
        return sum(item.length for _, item in self.items)

    @property
    def seconds(self) -> float:
        """Seconds that it takes in all, about."""
        return sum(self.cost(setting, item) for setting, item in self.items)

    def cost(self, setting: Setting, item: Item) -> float:
        """Seconds that an item takes, about."""
        return cost(self.speeds[setting.key], setting, item)

    def context(self, setting: Setting) -> int:
        """Tokens of the context that its items need."""
        return max(item.length for one, item in self.items if one.key == setting.key)


def cost(speed: Speed, setting: Setting, item: Item) -> float:
    """Seconds that an item takes at a speed, about."""
    seconds = speed.seconds(item.length) * _OVERHEAD
    if (
        item.kind == "short"
    ):  # each window reads its short context again: five times the tokens
        return 5 * speed.linear * item.length * _OVERHEAD
    if item.kind == "divergence":
        return 2 * seconds
    if setting.when_full != "stop":
        return (
            speed.seconds(min(item.length, setting.context))
            * item.length
            / setting.context
        )
    return seconds


def planned(paths: Sequence[object], options: EvalOptions) -> Plan:
    """Opens each setting once, measures its speed, and chooses what fits the budget.

    Raises UsageError, GgufError, RopeError, and ModelError where a context does not fit into the
    memory.
    """
    chosen = settings(_paths(paths), options)
    lengths = lengths_for(chosen, options)
    baselines, notes = _baselines(chosen, options)
    tried = _Tried(options, lengths)
    for setting in [*chosen, *baselines]:
        tried.add(setting)
    if options.divergence:
        check_vocabularies(tried.vocabularies)
    text = min((count for count in tried.texts if count is not None), default=None)
    documents = tried.documents or 0
    short = _short(chosen, options, text)
    draft = Plan(
        tuple(chosen),
        tuple(baselines),
        lengths,
        _trials(options, lengths, 1),
        min(options.documents or 1, documents),
        (),
        tried.speeds,
        tried.rotated,
        short,
        options.protocol,
        min(options.documents or tried.chunks, tried.chunks),
        (*notes, *_text_notes(lengths, text, options)),
    )
    short_texts = _SHORT_TEXTS if text is None or short is None else tried.pieces(short)
    return _fitted(draft, options, documents, short_texts)


class _Tried:
    """Opens settings and learns of them: speeds by key, tokens of the texts, and how many pieces
    of the longest length they give. The scaling changes none of it."""

    def __init__(self, options: EvalOptions, lengths: Sequence[int]) -> None:
        self._options = options
        self._lengths = lengths
        self._alike: dict[tuple[Path, str, str], tuple[Speed, tuple[str, ...]]] = {}
        self.speeds: dict[str, Speed] = {}
        self.rotated: dict[str, tuple[str, ...]] = {}
        self.texts: list[int | None] = []
        self._lengths_of_texts: list[list[int]] = []
        self.vocabularies: list[int] = []
        #: That every setting has, each of its own longest length; None: none was opened yet.
        self.documents: int | None = None
        self.chunks = 0

    def add(self, setting: Setting) -> None:
        """Raises ModelError where its context does not fit into the memory."""
        alike = (setting.path, setting.kv_type, setting.when_full)
        if alike not in self._alike:
            with Bench(
                setting, self._options, _longest(setting, self._lengths)
            ) as bench:
                self._look(bench)
                self._alike[alike] = bench.speed(), bench.rotated
        self.speeds[setting.key], self.rotated[setting.key] = self._alike[alike]

    def pieces(self, length: int) -> int:
        """Short texts of a length that the documents give, for every setting; a few are enough."""
        counts = (
            sum(n // length for n in lengths) for lengths in self._lengths_of_texts
        )
        return (
            max(1, min(_SHORT_TEXTS, *counts))
            if self._lengths_of_texts
            else _SHORT_TEXTS
        )

    def _look(self, bench: Bench) -> None:
        self.texts.append(bench.longest_text)
        if not bench.makes_texts:
            self._lengths_of_texts.append(bench.text_lengths)
        self.vocabularies.append(bench.model.n_vocab)
        available = _available(bench, self._lengths, self._options)
        before = self.documents
        self.documents = available if before is None else min(before, available)
        if self._options.protocol is not None:
            self.chunks = bench.chunks(_longest(bench.setting, self._lengths))
        for task in (
            self._options.tasks
        ):  # raises where the vocabulary or the length does not do
            bench.sample(Item("task", task, min(self._lengths), 0))


def _paths(paths: Sequence[object]) -> list[Path]:
    return [Path(str(path)) for path in paths]


def _longest(setting: Setting, lengths: Sequence[int]) -> int:
    return max((n for n in lengths if _reaches(setting, n)), default=min(lengths))


def _reaches(setting: Setting, length: int) -> bool:
    return setting.limit is None or length <= setting.limit


def _baselines(
    chosen: Sequence[Setting], options: EvalOptions
) -> tuple[list[Setting], list[str]]:
    """For each file and KV type that is scaled, the same unscaled where it is not chosen."""
    baselines: dict[str, Setting] = {}
    notes = []
    known = {setting.key for setting in chosen}
    for setting in chosen:
        if setting.is_unscaled or not options.price:
            continue
        unscaled = setting.unscaled()
        try:
            scaling_overrides(setting.header, unscaled.scaling)  # type: ignore[arg-type]
        except RopeError as error:
            notes.append(f"the price at a short context is not measured: {error}")
            continue
        if unscaled.key not in known:
            baselines[unscaled.key] = unscaled
    return list(baselines.values()), list(dict.fromkeys(notes))


def _short(
    chosen: Sequence[Setting], options: EvalOptions, text: int | None
) -> int | None:
    if all(setting.is_unscaled for setting in chosen) and len(chosen) == 1:
        return None
    trained = min(setting.trained for setting in chosen)
    most = _SHORT if options.texts or text is None else _SHORT_EMBEDDED
    return min(trained, most, text or most)


def _available(bench: Bench, lengths: Sequence[int], options: EvalOptions) -> int:
    """How many documents of the longest length there are."""
    try:
        length = _longest(bench.setting, lengths)
        return min(bench.pieces(length), options.documents or _MOST_DOCUMENTS)
    except UsageError:
        if options.texts and options.documents:
            raise
        return 0


def _text_notes(
    lengths: Sequence[int], text: int | None, options: EvalOptions
) -> list[str]:
    longest = max(lengths)
    if text is None or text >= longest:
        return []
    whose = "the given texts" if options.texts else "ggext's own text"
    note = (
        f"perplexity by position is not measured: {whose} of {text:,} tokens do not fill "
        f"{longest:,}; give a longer text"
    )
    return [note]


def _fitted(
    draft: Plan, options: EvalOptions, documents: int, short_texts: int
) -> Plan:
    """With as many texts as the budget allows, without the longest lengths where it allows few."""
    if options.trials is not None and options.documents is not None:
        return _with_items(draft, options, short_texts)
    plan = draft
    while True:
        once = replace(
            plan,
            trials=dict.fromkeys(plan.lengths, 1),
            documents=min(1, documents),
        )
        plan = _with_items(once, options, short_texts)
        rounds = _rounds(plan, options)
        if rounds >= _FEW or options.lengths or len(plan.lengths) <= 2:
            break
        note = (
            f"{plan.lengths[-1]:,} tokens are left out: the budget of {options.budget / 60:.0f} "
            f"minutes allows {max(0, rounds)} texts of them"
        )
        plan = replace(plan, lengths=plan.lengths[:-1], notes=(*plan.notes, note))
    rounds = max(1, rounds)
    trials = _trials(options, plan.lengths, min(_MOST_TRIALS, rounds))
    most = min(_MOST_DOCUMENTS, rounds)
    plan = replace(
        plan, trials=trials, documents=min(documents, options.documents or most)
    )
    return _with_items(plan, options, short_texts)


def _trials(
    options: EvalOptions, lengths: Sequence[int], otherwise: int
) -> dict[int, int]:
    """Texts for each task, by length; ``otherwise`` where nothing is asked for."""
    if isinstance(options.trials, tuple):
        return dict(zip(options.lengths, options.trials, strict=True))
    return dict.fromkeys(lengths, options.trials or otherwise)


def _rounds(plan: Plan, options: EvalOptions) -> int:
    """How many rounds of a text for each task, length and perplexity fit."""
    once = [
        pair
        for pair in plan.items
        if plan.short is not None and pair[1].length == plan.short
    ]
    fixed = sum(plan.cost(*pair) for pair in once if pair[1].kind == "text")
    each = max(1e-6, plan.seconds - fixed)
    return int((options.budget - fixed) / each)


def _with_items(plan: Plan, options: EvalOptions, short_texts: int) -> Plan:
    ordered: list[tuple[int, int, Setting, Item]] = []
    order = [*plan.settings, *plan.baselines]
    for place, setting in enumerate(order):
        own = setting in plan.settings
        for item in _items(plan, setting, options, short_texts, own=own):
            if item.kind == "divergence" and place == 0:
                continue
            ordered.append((item.index, place, setting, item))
    # Whenever it ends, every setting has measured about the same items.
    ordered.sort(
        key=lambda one: (one[0], one[3].length, one[3].kind, one[3].task, one[1])
    )
    return replace(
        plan, items=tuple((setting, item) for _, _, setting, item in ordered)
    )


def _items(
    plan: Plan, setting: Setting, options: EvalOptions, short_texts: int, *, own: bool
) -> list[Item]:
    result: list[Item] = []
    if plan.short is not None:
        result += [Item("text", "", plan.short, i) for i in range(short_texts)]
    if not own:
        return result
    lengths = [length for length in plan.lengths if _reaches(setting, length)]
    result += [
        Item("task", task, length, i)
        for task in options.tasks
        for length in lengths
        for i in range(plan.trials[length])
    ]
    if not lengths:
        return result
    longest = max(lengths)
    kinds = ["text"] * (plan.short != longest) + ["short"] * options.key_tokens
    # Both sides of a divergence must reach.
    if options.divergence and _reaches(plan.settings[0], longest):
        kinds.append("divergence")
    if options.protocol is not None:
        result += [Item("protocol", "", longest, i) for i in range(plan.chunks)]
    for kind in kinds:
        result += [Item(kind, "", longest, i) for i in range(plan.documents)]  # type: ignore[arg-type]
    return result
