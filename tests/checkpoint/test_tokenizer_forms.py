"""Vocabularies without a tokenizer.json: tekken.json, tiktoken ranks, vocab.json with
merges.txt."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from vocabulary import (
    EOS,
    Load,
    alike,
    differences,
    save,
    split_steps,
    strings,
    tokenizer_json,
)

from ggext.checkpoint.files import CONTROL
from ggext.checkpoint.vocabulary import pretokenizers as pre
from ggext.checkpoint.vocabulary.byte_level import SYMBOLS, symbols_of
from ggext.checkpoint.vocabulary.read import read_vocabulary
from ggext.errors import CheckpointError

Crossing = tuple[dict[str, int], list[list[str]]]


def byte_values(symbols: str) -> bytes:
    return bytes(SYMBOLS.index(symbol) for symbol in symbols)


def ranks_of(crossing: Crossing) -> dict[bytes, int]:
    """A tiktoken vocabulary: the bytes, then the tokens in the order of their merges."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += dict.fromkeys(byte_values("".join(pair)) for pair in crossing[1])
    return {token: rank for rank, token in enumerate(tokens)}


def as_tiktoken(ranks: dict[bytes, int]) -> bytes:
    return b"".join(
        base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()
    )


def judge(ranks: dict[bytes, int], expression: str, first: int = 0) -> Any:
    """`tokenizers` with tiktoken's meaning: a whole word, else pairs by the rank of what they
    form."""
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {symbols_of(token): first + rank for token, rank in ranks.items()}
    merges = []
    for token in ranks:
        cuts = [(token[:k], token[k:]) for k in range(1, len(token))]
        merges += [
            [symbols_of(a), symbols_of(b)] for a, b in cuts if a in ranks and b in ranks
        ]
    root = tokenizer_json(
        vocab,
        merges,
        split_steps(expression),
        model={"ignore_merges": True},
        added_tokens=[],
    )
    return tokenizers.Tokenizer.from_str(json.dumps(root))


# tekken ------------------------------------------------------------------------------------------


def tekken(ranks: dict[bytes, int], **changes: Any) -> dict[str, Any]:
    rows = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode()}
        for token, rank in ranks.items()
    ]
    sizes = {
        "default_vocab_size": 100 + len(rows) - 5,
        "default_num_special_tokens": 100,
    }
    specials = [
        {"rank": i, "token_str": text, "is_control": True}
        for i, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    return {
        "config": {"pattern": pre.TEKKEN} | sizes,
        "vocab": rows,
        "special_tokens": specials,
    } | changes


def test_tekken(crossing: Crossing, tmp_path: Path, load: Load) -> None:
    ranks = ranks_of(crossing)
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(ranks)))
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    size = 100 + len(ranks) - 5  # the last five are beyond default_vocab_size
    vocabulary = read_vocabulary(tmp_path, size)
    assert (vocabulary.model, vocabulary.pre, vocabulary.add_bos) == (
        "gpt2",
        "tekken",
        True,
    )
    assert vocabulary.tokens[:4] == ("<unk>", "<s>", "</s>", "<SPECIAL_3>")
    assert set(vocabulary.token_types[:100]) == {CONTROL}
    assert vocabulary.special_ids == {"bos": 1, "eos": 2}
    original = judge(dict(list(ranks.items())[:-5]), pre.TEKKEN, 100)
    texts = alike("tekken", strings(4000))
    assert len(texts) > 2000
    assert differences(original, load(vocabulary), texts) == []


@pytest.fixture
def mistral_common() -> Path:
    """Published tokenizers of Mistral lie in the package mistral-common, where it is installed."""
    found = importlib.util.find_spec("mistral_common")
    if found is None or found.origin is None:
        pytest.skip(
            "mistral-common, whose data are published tokenizers, is not installed"
        )
    return Path(found.origin).parent / "data"


@pytest.mark.parametrize("name", ["tekken_240718.json", "tekken_240911.json"])
def test_published_tekken(
    mistral_common: Path, tmp_path: Path, load: Load, name: str
) -> None:
    root = json.loads((mistral_common / name).read_bytes())
    shutil.copy(mistral_common / name, tmp_path / "tekken.json")
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    vocabulary = read_vocabulary(tmp_path, root["config"]["default_vocab_size"])
    assert (vocabulary.pre, vocabulary.special_ids["bos"], vocabulary.tokens[3]) == (
        "tekken",
        1,
        "[INST]",
    )
    special = root["config"]["default_num_special_tokens"]
    rows = root["vocab"][: root["config"]["default_vocab_size"] - special]
    original = judge(
        {base64.b64decode(row["token_bytes"]): row["rank"] for row in rows},
        root["config"]["pattern"],
        special,
    )
    texts = alike("tekken", strings(4500))
    assert len(texts) > 2000
    assert differences(original, load(vocabulary), texts) == []


@pytest.mark.parametrize("version", ["v1", "v3", "v7"])
def test_published_sentencepiece_models(
    mistral_common: Path, tmp_path: Path, load: Load, version: str
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (path,) = mistral_common.glob(f"*.model.{version}")
    shutil.copy(path, tmp_path / "tokenizer.model")
    original = sentencepiece.SentencePieceProcessor(str(path))
    vocabulary = read_vocabulary(tmp_path, len(original))
    texts = [text for text in strings(2500) if not re.search(r"\[[A-Z/_]+\]", text)]
    llama = load(vocabulary)
    assert [text for text in texts if original.encode(text) != llama.encode(text)] == []


# ranks -------------------------------------------------------------------------------------------


KIMI_CODE = (
    'pat_str = "|".join([\n'
    + "".join(f'    r"""{part}""",\n' for part in pre.KIMI_ALTERNATIVES)
    + "])\n"
)
QWEN_CODE = (
    f'PAT_STR = r"""{pre.QWEN2}"""\nraise SystemExit("this file is never run")\n'
)


@pytest.mark.parametrize(
    ("file", "code", "name"),
    [("tiktoken.model", KIMI_CODE, "kimi-k2"), ("qwen.tiktoken", QWEN_CODE, "qwen2")],
    ids=["kimi", "qwen"],
)
def test_ranks_with_the_expression_in_python(
    crossing: Crossing, tmp_path: Path, load: Load, file: str, code: str, name: str
) -> None:
    ranks = ranks_of(crossing)
    (tmp_path / file).write_bytes(as_tiktoken(ranks))
    (tmp_path / "tokenization_model.py").write_text(code)
    decoder = {str(len(ranks)): {"content": EOS, "special": True}}
    config = {"eos_token": EOS, "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = read_vocabulary(tmp_path, len(ranks) + 1)
    assert vocabulary.pre == name
    expression = {"kimi-k2": pre.KIMI, "qwen2": pre.QWEN2}[name]
    texts = alike("kimi-k2", strings(3000))
    assert differences(judge(ranks, expression), load(vocabulary), texts) == []


def test_llama3_s_ranks_are_known(shared: Path, tmp_path: Path, load: Load) -> None:
    data = (shared / "tokenizers/llama3/tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data)
    names = {
        128000: "<|begin_of_text|>",
        128001: "<|end_of_text|>",
        128009: "<|eot_id|>",
    }
    decoder = {str(i): {"content": text, "special": True} for i, text in names.items()}
    config = {
        "bos_token": names[128000],
        "eos_token": names[128009],
        "added_tokens_decoder": decoder,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = read_vocabulary(tmp_path, 128256)
    assert (vocabulary.pre, vocabulary.add_bos) == ("llama-bpe", True)
    assert vocabulary.special_ids == {"bos": 128000, "eos": 128009, "eot": 128009}
    ranks = {
        base64.b64decode(line.split()[0]): i for i, line in enumerate(data.splitlines())
    }
    assert differences(judge(ranks, pre.LLAMA3), load(vocabulary), strings(500)) == []


# vocab.json and merges.txt -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"), [("GPT2Tokenizer", "gpt-2"), ("Qwen2TokenizerFast", "qwen2")]
)
def test_vocab_and_merges(
    crossing: Crossing, tmp_path: Path, load: Load, kind: str, name: str
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocab, merges = crossing
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    )
    (tmp_path / "added_tokens.json").write_text(json.dumps({EOS: len(vocab)}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": kind, "eos_token": EOS})
    )
    vocabulary = read_vocabulary(tmp_path, len(vocab) + 1)
    assert (vocabulary.pre, vocabulary.special_ids["eos"]) == (name, len(vocab))
    expression = {"gpt-2": pre.GPT2, "qwen2": pre.QWEN2}[name]
    whole = save(
        tmp_path / "whole", tokenizer_json(vocab, merges, split_steps(expression))
    )
    original = tokenizers.Tokenizer.from_file(str(whole / "tokenizer.json"))
    assert differences(original, load(vocabulary), strings(2500)) == []


# broken ones -------------------------------------------------------------------------------------

RANKS = {bytes([byte]): byte for byte in range(256)} | {
    bytes([97 + i]) * 2: 256 + i for i in range(10)
}
EOS_CONFIG = {"tokenizer_config.json": b'{"eos_token": "a"}'}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tekken.json": json.dumps(tekken(RANKS, config={}))},
            "0 tokens, 0 of them special, cannot be made of 266",
        ),
        (
            {"tekken.json": json.dumps(tekken(RANKS, vocab=[1] * 300))},
            "'1' is no object",
        ),
        (
            {
                "tekken.json": json.dumps(
                    tekken(RANKS, vocab=[{"rank": 0, "token_bytes": "?"}] * 300)
                )
            },
            "is not base64",
        ),
        (
            {
                "tekken.json": json.dumps(
                    tekken(RANKS, vocab=[{"rank": 0, "token_bytes": ""}] * 300)
                )
            },
            "has 0 bytes",
        ),
        (
            {"tekken.json": json.dumps(tekken(RANKS, vocab=[{"rank": 0}] * 300))},
            "is not base64",
        ),
        (
            {"tekken.json": json.dumps(tekken(RANKS, special_tokens=[{"rank": 100}]))},
            "has a rank outside 0 to 99",
        ),
        (
            {"tekken.json": json.dumps(tekken(RANKS, special_tokens=[{"rank": 1}]))},
            "expected a string",
        ),
        (
            {"qwen.tiktoken": as_tiktoken(RANKS)},
            "no Python file next to it holds an expression",
        ),
        (
            {"qwen.tiktoken": b"YQ== 0\nYQ== 1\n", "tokenization_q.py": QWEN_CODE},
            "rank 1 is '1' .* there twice",
        ),
        (
            {"qwen.tiktoken": b"YQ== 0\nYg== 7\n", "tokenization_q.py": QWEN_CODE},
            "rank 1 is '7'",
        ),
        (
            {"qwen.tiktoken": b"YQ== 0\nYg==\n", "tokenization_q.py": QWEN_CODE},
            "rank 1 is '-1'",
        ),
        (
            {"qwen.tiktoken": b"YQ== 0\n", "tokenization_q.py": QWEN_CODE},
            "the byte 0x00 has no token",
        ),
        (
            {
                "qwen.tiktoken": as_tiktoken(RANKS),
                "tokenization_q.py": QWEN_CODE + KIMI_CODE,
            },
            "no Python file next to it",
        ),
        ({"vocab.json": "{}", "merges.txt": ""}, "has the tokenizer_class ''"),
    ],
)
def test_broken_files(
    tmp_path: Path, files: dict[str, bytes | str], message: str
) -> None:
    for name, content in (EOS_CONFIG | files).items():
        (tmp_path / name).write_bytes(
            content.encode() if isinstance(content, str) else content
        )
    with pytest.raises(CheckpointError, match=message) as caught:
        read_vocabulary(tmp_path, 1000)
    assert "\n" not in str(caught.value)
