"""Two files that say the same of a vocabulary, and do not: transformers' order, and a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import VOCABULARY, write_tokenizer
from vocabulary import llama2_json, train_sentencepiece

from ggext.checkpoint.vocabulary.pretokenizers import LLAMA3
from ggext.checkpoint.vocabulary.read import Vocabulary, read_vocabulary

pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def notes_of(folder: Path, size: int = VOCABULARY) -> str:
    return " ".join(read_vocabulary(folder, size).notes)


def ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {text: number for number, text in enumerate(vocabulary.tokens)}


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, int]:
    """A tokenizer.model and the tokenizer.json that transformers makes of it."""
    size = train_sentencepiece(tmp_path).vocab_size()
    vocabulary = read_vocabulary(tmp_path, size)
    steps = {"type": "Metaspace", "prepend_scheme": "first", "split": False}
    root = llama2_json(vocabulary, pre_tokenizer=steps | {"replacement": "\u2581"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(root))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return tmp_path, size


def test_a_tokenizer_model_that_agrees_is_taken(both: tuple[Path, int]) -> None:
    folder, size = both
    assert "tokenizer.model differ" not in notes_of(folder, size)


def test_a_tokenizer_json_with_other_pieces_goes_first(both: tuple[Path, int]) -> None:
    """Such as a tokenizer.model that is left from the model that this one was made of."""
    folder, size = both
    root = json.loads((folder / "tokenizer.json").read_text())
    vocab = root["model"]["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(root))
    vocabulary = read_vocabulary(folder, size)
    assert "tokenizer.json and tokenizer.model differ (" in " ".join(vocabulary.notes)
    assert ids(vocabulary)[first] == vocab[first]


@pytest.mark.parametrize(("pattern", "told"), [(LLAMA3, True), (None, False)])
def test_a_tekken_json_with_another_expression(
    folder: Path, pattern: str | None, *, told: bool
) -> None:
    config = {} if pattern is None else {"pattern": pattern}
    (folder / "tekken.json").write_text(json.dumps({"config": config, "vocab": []}))
    assert ("tekken.json splits text by another expression" in notes_of(folder)) == told


@pytest.mark.parametrize("shift", [0, 1])
def test_a_vocab_json_with_other_ids(folder: Path, shift: int) -> None:
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.json").write_text(
        json.dumps({k: v + shift for k, v in vocab.items()})
    )
    (folder / "merges.txt").write_text("")
    assert ("vocab.json gives tokens other ids" in notes_of(folder)) == bool(shift)


@pytest.mark.parametrize(
    ("names", "taken", "told"),
    [
        (
            ("chat_template.jinja", "tokenizer_config.json", "chat_template.json"),
            0,
            True,
        ),
        (("tokenizer_config.json", "chat_template.json"), 0, True),
        (("chat_template.json",), 0, False),
        (("chat_template.jinja",), 0, False),
    ],
)
def test_the_order_of_chat_templates(
    folder: Path, names: tuple[str, ...], taken: int, *, told: bool
) -> None:
    for name in names:
        if name.endswith(".jinja"):
            (folder / name).write_text(f"from {name}")
        elif name == "chat_template.json":
            (folder / name).write_text(json.dumps({"chat_template": f"from {name}"}))
        else:
            change(folder / name, chat_template=f"from {name}")
    vocabulary = read_vocabulary(folder, VOCABULARY)
    assert vocabulary.chat_template == f"from {names[taken]}"
    assert ("is another one and not read" in " ".join(vocabulary.notes)) == told
