"""Texts whose pre-tokenization recurses: bounded, and the tokens are those of the unbroken text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hostile import texts

from ggext.runtime import long_text

pytest.importorskip("llama_cpp")


@pytest.mark.parametrize(
    "pre", ["tekken", "gpt-4o", "deepseek-llm", "superbpe", "exaone-moe"]
)
def test_tokens_are_those_of_the_unbroken_text(tmp_path: Path, pre: str) -> None:
    path = texts.vocabulary(tmp_path / "model.gguf", pre)
    draw = random.Random(pre)
    chosen = [
        "_-",
        "a-",
        "/\n",
        "'s",
        "1",
        "1a",
        *draw.sample(list(texts.patterns()), 4),
    ]
    long = [pattern * (3000 // len(pattern)) for pattern in chosen]
    prose = "The quick brown fox (12345678 of them) jumps over l'été; 你好 世界!\n\n\tIt's 3.14159.  "
    assert texts.in_child(path, [*long, prose * 40], compare=True) == ""


@pytest.mark.parametrize("pre", ["tekken", "poro-chat", "default"])
def test_a_long_text_ends(tmp_path: Path, pre: str) -> None:
    path = texts.vocabulary(tmp_path / "model.gguf", pre)
    long = [pattern * 60_000 for pattern in ("/\n", "_-", "a'")]
    assert texts.in_child(path, long, compare=False) == ""


def test_a_number_of_any_length_is_grouped_as_the_whole_one(tmp_path: Path) -> None:
    """Of superbpe's groups from the right; 120,000 digits took over 20 s."""
    path = texts.vocabulary(tmp_path / "model.gguf", "superbpe")
    digits = "".join(random.Random(1).choices("0123456789", k=3001))
    assert texts.in_child(path, [digits, digits[1:], digits[2:]], compare=True) == ""
    assert texts.in_child(path, ["12" * 60_000], compare=False) == ""


def grouped(text: str) -> list[int]:
    """Words: letters in threes from the left, digits in threes from the right."""
    tokens: list[int] = []
    for word in text.replace(" ", "\0 \0").split("\0"):
        first = len(word) % 3 if word.isdigit() else 0
        tokens += [hash(word[:first])] if first else []
        tokens += [hash(word[i : i + 3]) for i in range(first, len(word), 3)]
    return tokens


def test_words_and_numbers_are_not_cut() -> None:
    draw = random.Random(0)
    words = [
        " ",
        "a",
        " bc",
        " d",
        " 1",
        " 23",
        f" {'4' * 99} ",
        f" {'4' * 900} ",
        " " + "e" * 50,
    ]
    text = "".join(draw.choices(words, [9, 9, 9, 9, 9, 9, 3, 1, 3], k=9000))
    assert long_text.tokens_of(text, grouped) == grouped(text)


@pytest.mark.parametrize("length", [1280, 1281, 1282, 5000, 5001, 5002])
def test_numbers_of_any_length_are_grouped_from_the_right(length: int) -> None:
    """Longer than a window, after words and before them."""
    digits = "".join(random.Random(length).choices("0123456789", k=length))
    for text in (digits, f"{'ab ' * 700}{digits}", f"{digits} {'ab ' * 700}{digits}"):
        assert long_text.tokens_of(text, grouped) == grouped(text)


def test_windows_are_bounded_whatever_the_text() -> None:
    lengths: list[int] = []

    def tokenize(text: str) -> list[int]:
        lengths.append(len(text))
        return [hash(text)]  # nothing can be cut

    for text in ("x" * 10**6, "1" * 10**6, "1 " * 10**5):
        long_text.tokens_of(text, tokenize)
        assert max(lengths) <= long_text.TAKEN + long_text.AHEAD
        assert sum(lengths) < 40 * len(text)
        lengths.clear()
