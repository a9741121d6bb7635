"""The core of `ggext eval`: samples, scores, error bars."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from ggext.errors import ModelError, UsageError
from ggext.quality import statistics
from ggext.quality.scoring import effective_context, match_all, match_any
from ggext.quality.statistics import Estimate

np = pytest.importorskip("numpy")


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [
        (20, 20, 84, 100),
        (25, 25, 87, 100),
        (95, 100, 89, 98),
        (85, 100, 77, 91),
        (425, 500, 82, 88),
    ],
)
def test_wilson_s_interval(right: int, asked: int, low: int, high: int) -> None:
    """Published values."""
    bounds = statistics.wilson(right / asked, asked)
    assert [round(100 * bound) for bound in bounds] == [low, high]


@pytest.mark.parametrize(
    ("df", "expected"), [(1, 12.706), (2, 4.303), (9, 2.262), (100, 1.984)]
)
def test_student_s_quantiles(df: int, expected: float) -> None:
    assert statistics.t_quantile(df) == pytest.approx(expected, abs=5e-4)


def test_a_share_counts_texts_not_questions() -> None:
    """Ten texts of which each is all right or all wrong are ten items, however many questions."""
    scores = [float(text < 8) for text in range(10) for _ in range(10)]
    texts = [text for text in range(10) for _ in range(10)]
    clustered = statistics.share(scores, texts)
    alone = statistics.share(scores, range(100))
    assert clustered.value == alone.value == 0.8
    few = statistics.wilson(0.8, 10)
    assert clustered.low < few[0]
    assert alone.low > 0.7
    assert statistics.share([1.0] * 10, [0] * 10).low < 0.3  # one text proves little


def test_a_difference_of_few_texts_names_no_winner() -> None:
    """A t interval of equal differences has no width: two texts would decide everything."""
    cluster = {(text, i): text for text in range(2) for i in range(5)}
    worse, better = dict.fromkeys(cluster, 0.0), dict.fromkeys(cluster, 1.0)
    few = statistics.difference(worse, better, cluster)
    assert few is not None
    assert few.value == 1
    assert not few.excludes_zero
    cluster = {(text, i): text for text in range(20) for i in range(5)}
    worse, better = dict.fromkeys(cluster, 0.0), dict.fromkeys(cluster, 1.0)
    many = statistics.difference(worse, better, cluster)
    assert many is not None
    assert many.excludes_zero
    assert statistics.difference({}, better, cluster) is None


def test_two_texts_that_agree_by_chance_show_nothing() -> None:
    """Each loses and gains as many answers as the other: the texts alone have no variance."""
    worse = {(text, i): float(i < 1) for text in "ab" for i in range(5)}
    better = {(text, i): float(i < 2) for text in "ab" for i in range(5)}
    found = statistics.difference(worse, better, {item: item[0] for item in worse})
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert found.low < -0.5
    assert found.high > 0.5


def test_paired_means_are_tighter_than_the_values() -> None:
    first = {i: 10.0 * i for i in range(8)}
    second = {i: 10.0 * i + 1 + 0.01 * (i % 2) for i in range(8)}
    found = statistics.paired(first, second)
    assert found is not None
    assert 0.9 < found.low < found.value < found.high < 1.1


@pytest.mark.parametrize(
    ("answer", "references", "all_of", "any_of"),
    [
        ("The codes are 1234567 and 7654321.", ("1234567", "7654321"), 1.0, 1.0),
        ("1234567", ("1234567", "7654321"), 0.5, 1.0),
        ("PARIS\x00\n", ("Paris",), 1.0, 1.0),
        (
            "in the year 19451",
            ("1945",),
            1.0,
            1.0,
        ),  # a part of a word counts, as in RULER
        ("", ("x",), 0.0, 0.0),
        ("alpha, beta", ("Alpha", "BETA", "gamma"), 2 / 3, 1.0),
    ],
)
def test_answers_score_as_in_ruler(
    answer: str, references: tuple[str, ...], all_of: float, any_of: float
) -> None:
    assert match_all(answer, references) == pytest.approx(all_of)
    assert match_any(answer, references) == any_of


def test_a_length_counts_when_all_shorter_ones_do() -> None:
    def at(value: float, low: float, high: float) -> Estimate:
        return Estimate(value, low, high, 100, 20)

    good, poor, unsure = at(1, 0.9, 1), at(0.4, 0.3, 0.5), at(0.9, 0.8, 0.95)
    ruler, nolima = effective_context({1024: good, 2048: poor, 4096: good})
    assert (ruler.length, ruler.next_length, ruler.decided) == (1024, 2048, True)
    assert nolima.threshold == pytest.approx(0.85)
    ruler, _ = effective_context({1024: good, 2048: unsure})
    assert (ruler.length, ruler.next_length, ruler.decided) == (1024, 2048, False)
    ruler, nolima = effective_context(
        {1024: at(0.5, 0.45, 0.55), 2048: at(0.5, 0.45, 0.55)}
    )
    assert (ruler.length, nolima.length) == (None, 2048)
    ruler, nolima = effective_context({1024: at(0, 0, 0.04)})
    assert (nolima.length, nolima.threshold) == (None, None)


def test_likelihoods_are_those_of_a_softmax() -> None:
    from ggext.runtime.likelihood import diverge, score

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, 50)).astype(np.float32) * 9
    tokens = rng.integers(0, 50, 7)
    tokens[2] = rows[2].argmax()
    p = np.exp(rows.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    scores = score(rows, tokens)
    assert scores.nll == pytest.approx(-np.log(p[np.arange(7), tokens]))
    assert scores.greedy.tolist() == (rows.argmax(axis=1) == tokens).tolist()
    other = rows + rng.normal(size=rows.shape).astype(np.float32)
    q = np.exp(other.astype(np.float64))
    q /= q.sum(axis=1, keepdims=True)
    divergence = diverge(rows, other, tokens)
    assert divergence.kl == pytest.approx((p * np.log(p / q)).sum(axis=1))
    assert divergence.delta_p == pytest.approx((q - p)[np.arange(7), tokens])
    assert diverge(rows, rows).kl == pytest.approx(np.zeros(7), abs=1e-12)


def test_logits_that_are_no_numbers_are_named() -> None:
    from ggext.runtime.likelihood import score

    rows = np.zeros((4, 8), np.float32)
    rows[2, 3] = np.nan
    with pytest.raises(ModelError, match=r"after token 102 are not numbers"):
        score(rows, [0, 1, 2, 3], position=100)


def test_key_tokens_are_those_of_the_published_definition() -> None:
    """LongPPL: loss in the short context more than 2 nats above, loss in the long one below 2."""
    from ggext.quality.perplexity import key_tokens

    short = np.array([np.nan, 5.0, 5.0, 3.9, 9.0])
    long = np.array([0.1, 2.5, 1.0, 1.95, 1.99])
    assert key_tokens(short, long).tolist() == [False, False, True, False, True]


def test_bands_double() -> None:
    from ggext.quality.perplexity import band_mean, bands

    found = bands(3000)
    assert [(band.start, band.end) for band in found] == [
        (0, 256), (256, 512), (512, 1024), (1024, 2048), (2048, 3000),
    ]  # fmt: skip
    losses = np.arange(1, 3000, dtype=float)  # that of token i is i
    assert band_mean(losses, found[0]) == 128
    assert band_mean(losses, found[1]) == pytest.approx(383.5)


@pytest.mark.parametrize("target", [300, 301, 302, 303, 304, 777])
def test_a_sample_fills_its_length(target: int) -> None:
    from ggext.quality import tasks

    def count(sample: object) -> int:
        assert isinstance(sample, tasks.Sample)
        return sum(1 + (len(word) > 6) for word in sample.body.split()) + 30

    passage = "The bell tower was built in 1731 by two brothers."
    asked = tasks.UserQuestion("Who built it?", ("brothers",), passage)
    source = tasks.Source(count, own_questions=(asked,))
    for task in tasks.TASKS:
        sample = tasks.make(task, source, target, Random(target))
        assert target - 1 <= count(sample) <= target, task
        for question in sample.questions:
            for answer in question.answers:
                assert answer in sample.body, (task, answer)
        assert tasks.make(task, source, target, Random(target)) == sample
    with pytest.raises(UsageError, match="too short for multikey"):
        tasks.make("multikey", source, 64, Random(0))


def test_questions_of_one_s_own_are_read_line_by_line(tmp_path: Path) -> None:
    from ggext.quality.tasks import UserQuestion
    from ggext.quality.texts import read_questions

    path = tmp_path / "questions.jsonl"
    good = '{"question": "Who?", "answers": ["A", "B"], "passage": "A did."}'
    path.write_text(f"{good}\n\n{good}\n")
    assert read_questions(path) == (UserQuestion("Who?", ("A", "B"), "A did."),) * 2
    for bad in (
        "[]",
        "{",
        '{"question": "Who?", "answers": [], "passage": "x"}',
        '{"question": 1}',
    ):
        path.write_text(f"{good}\n{bad}\n")
        with pytest.raises(
            UsageError, match=r"questions\.jsonl, line 2, is not a question"
        ):
            read_questions(path)


class _Vocabulary:
    """Characters as tokens after two special ones, for prompts alone."""

    path = Path("model.gguf")
    bos, eos, n_vocab = 1, 2, 1 << 16

    def __init__(
        self, template: str | None, *, adds_bos: bool = True, letters: str = ""
    ) -> None:
        self.chat_template = template
        self.adds_bos = adds_bos
        self._letters = letters

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        parts = text.split("<s>") if parse_special else [text]
        found = [token for part in parts for token in (self.bos, *map(ord, part))][1:]
        return [self.bos, *found] if add_special and self.adds_bos else found

    def token_to_piece(self, token: int) -> bytes:
        letter = chr(token)
        return letter.encode() if not self._letters or letter in self._letters else b"?"

    def token_text(self, token: int) -> str:
        return {1: "<s>", 2: "</s>"}.get(token, chr(token))

    def is_control(self, token: int) -> bool:
        return token in (1, 2)


_ONE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "adds_bos", "count"),
    [(_ONE, True, 1), (_ONE.replace("{{ bos_token }}", ""), True, 1), (None, True, 1),
     (None, False, 0), ("{{ bos_token }}" + _ONE, True, 2)],
)  # fmt: skip
def test_a_prompt_has_one_bos_or_is_refused(
    template: str | None, adds_bos: bool, count: int
) -> None:
    pytest.importorskip("jinja2")
    from ggext.quality.prompts import PromptMaker
    from ggext.quality.samples import Question

    vocabulary = _Vocabulary(template, adds_bos=adds_bos)
    maker = PromptMaker(vocabulary)  # type: ignore[arg-type]
    question = Question("Where?", "It is", ("here",))
    if count > 1:
        with pytest.raises(ModelError, match="begins with 2 BOS tokens"):
            maker.prompt("A text.", question)
        return
    tokens = maker.prompt("A text.", question)
    assert tokens.count(1) == count
    assert "".join(map(chr, tokens[count:])).endswith("It is")
    assert "".join(map(chr, maker.answer(question))) == " here"


def test_a_vocabulary_that_cannot_spell_a_needle_is_refused() -> None:
    pytest.importorskip("jinja2")
    from ggext.quality.needles import sample_maker
    from ggext.quality.prompts import PromptMaker

    able = PromptMaker(_Vocabulary(None))  # type: ignore[arg-type]
    assert sample_maker(able)("single", 400, Random(0)).task == "single"
    unable = PromptMaker(_Vocabulary(None, letters="abc "))  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match=r"the vocabulary of model\.gguf cannot spell a needle"
    ):
        sample_maker(unable)
