"""Vocabularies that are damaged, missing or too large: refused in one sentence."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import DIGITS, tiny
from vocabulary import BYTE_LEVEL, EOS, added, save, split_steps

from ggext.checkpoint.vocabulary import spm as tokenizer_spm
from ggext.checkpoint.vocabulary.read import Vocabulary, read_vocabulary
from ggext.errors import CheckpointError

# hostile and broken files -----------------------------------------------------------------------

TINY = tiny()
VOCAB = TINY["model"]["vocab"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": []}, "model is '.*', expected dict"),
        ({"model": {"type": "Unigram"}}, "is a 'Unigram' tokenizer"),
        ({"model": {"type": "BPE", "vocab": {}}}, "an empty vocabulary"),
        (
            {"model": {"vocab": VOCAB | {"c2": 256}}},
            "has the id 256, which another token has too",
        ),
        ({"model": {"vocab": VOCAB | {"c2": -1}}}, "has the id '-1'"),
        ({"model": {"vocab": VOCAB | {"c2": True}}}, "has the id 'True'"),
        (
            {"model": {"vocab": VOCAB | {"c2": 1 << 40}}},
            "expected an integer from 0 to 4194303",
        ),
        ({"model": {"vocab": VOCAB | {"": 257}}}, "has 0 characters"),
        ({"model": {"vocab": VOCAB | {"x" * 2000: 257}}}, "has 2000 characters"),
        ({"model": {"vocab": VOCAB | {"\ud800": 257}}}, "is not valid Unicode"),
        ({"model": {"vocab": VOCAB | {"a\0": 257}}}, "contains a NUL"),
        (
            {"model": {"vocab": VOCAB, "merges": [["a", "zz"]]}},
            "merge 0 .* names the token 'zz'",
        ),
        ({"model": {"vocab": VOCAB, "merges": ["a b c"]}}, "expected two tokens"),
        ({"model": {"vocab": VOCAB, "merges": [["a", 1]]}}, "expected two tokens"),
        (
            {"model": TINY["model"] | {"end_of_word_suffix": "</w>"}},
            "end_of_word_suffix '</w>'",
        ),
        ({"added_tokens": [1]}, "an added token is no object"),
        ({"added_tokens": [{"id": 257}]}, "expected a string"),
        (
            {"added_tokens": added(256, EOS, EOS)},
            "the tokens 256 and 257 have the same text",
        ),
        (
            {"added_tokens": []},
            "eos_token is '<|end|>', which is not in the vocabulary",
        ),
        (
            {"added_tokens": added(257, EOS, "a1", "a2")},
            "has 260 tokens .* vocab_size .* is 258",
        ),
        ({"normalizer": {"type": "NFKC"}}, "the normalizer .*NFKC.* has no equal"),
        ({"pre_tokenizer": None}, "the pre_tokenizer step 'None' has no equal"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "step 'Whitespace' has no equal"),
        ({"pre_tokenizer": DIGITS}, "does not end in its one ByteLevel step"),
        (
            {"pre_tokenizer": split_steps(r"\w+")},
            r"no pre-tokenizer with the expressions '.*w\+'",
        ),
        (
            {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}},
            "has add_prefix_space",
        ),
        (
            {"post_processor": {"type": "BertProcessing"}},
            "post_processor 'BertProcessing'",
        ),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {}}],
                }
            },
            "a token of the post_processor is 'None'",
        ),
    ],
)
def test_broken_tokenizer_json(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save(tmp_path, TINY | changes)
    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")) as caught:
        read_vocabulary(tmp_path, 258)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"[1]", "holds a list, expected a JSON object"),
        ("tokenizer.json", b"{", "is not valid JSON"),
        ("tokenizer.json", b"[" * 100_000, "is not valid JSON"),
        ("tokenizer.json", b"\xff\xfe", "is not UTF-8 text"),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f", None),
        ("tokenizer_config.json", b'{"eos_token": 5}', "expected a string"),
        (
            "tokenizer_config.json",
            b'{"add_bos_token": 1, "eos_token": null}',
            "no end-of-sequence",
        ),
        (
            "tokenizer_config.json",
            b'{"eos_token": "ab", "add_bos_token": 1}',
            "expected bool",
        ),
        (
            "tokenizer_config.json",
            b'{"eos_token": "ab", "add_bos_token": true}',
            "no bos_token",
        ),
        (
            "tokenizer_config.json",
            b'{"eos_token": "ab", "chat_template": 3}',
            "chat_template is a",
        ),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"x": {}}}',
            "has the entry 'x'",
        ),
        (
            "special_tokens_map.json",
            b'{"bos_token": "?!?"}',
            "is not in the vocabulary",
        ),
        ("config.json", b'{"bos_token_id": 99999}', "the vocabulary has no such token"),
        ("config.json", b'{"bos_token_id": 1.5}', "has the id '1.5'"),
        ("added_tokens.json", b'{"<new>": "1"}', "has the id"),
        ("chat_template.jinja", b"\xff", "is not UTF-8 text"),
    ],
)
def test_broken_files(
    tmp_path: Path, name: str, content: bytes, message: str | None
) -> None:
    save(tmp_path, TINY)
    (tmp_path / name).write_bytes(content)
    if (
        message is None
    ):  # tokenizer.json is there: a tokenizer.model of another kind is passed over
        assert read_vocabulary(tmp_path, 258).pre == "gpt-2"
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        read_vocabulary(tmp_path, 258)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"no tokenizer\.json, tokenizer\.model, tekken\.json or vocab\.json",
    ):
        read_vocabulary(tmp_path, 10)
    ranks = (shared / "tokenizers/llama3/tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(
        ranks[:-20]
    )  # no longer the file that is known
    with pytest.raises(
        CheckpointError,
        match="is a list of tiktoken ranks, which says nothing of words",
    ):
        read_vocabulary(tmp_path, 10)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="vocab_size is 0"):
        read_vocabulary(tmp_path, 0)
    monkeypatch.setattr("ggext.checkpoint.vocabulary.read.MAX_FILE_BYTES", 1 << 10)
    with pytest.raises(CheckpointError, match="is larger than"):
        read_vocabulary(save(tmp_path, TINY), 258)


def test_every_cut_and_flip_of_a_sentencepiece_model(
    shared: Path, tmp_path: Path
) -> None:
    good = (shared / "models/stories260K/tokenizer.model").read_bytes()
    source = random.Random(5)
    refused = 0
    for _ in range(300):
        bad = bytearray(
            good[: source.randrange(len(good))] if source.random() < 0.5 else good
        )
        for _ in range(source.randrange(4)):
            if bad:
                bad[source.randrange(len(bad))] = source.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(bad)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer_spm, "_usual_pieces", lambda _: ([], 0))
            by_field = outcome(tmp_path)
        assert outcome(tmp_path) == by_field
        refused += isinstance(by_field, str) and "\n" not in by_field
    assert refused > 100


def outcome(folder: Path) -> Vocabulary | str:
    try:
        return read_vocabulary(folder, 512)
    except CheckpointError as error:
        return str(error)
