"""Vocabularies against llama.cpp: a vocabulary-only GGUF file must give the original's token ids.

The originals are the `tokenizers` and `sentencepiece` packages. Where llama.cpp itself differs,
the strings are restricted, and the reason stands beside the restriction.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ggext.checkpoint import pretokenizers
from ggext.checkpoint.files import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED
from ggext.checkpoint.tokenizer import Vocabulary, read_vocabulary
from ggext.errors import CheckpointError
from ggext.gguf.reader import read_gguf
from ggext.runtime.llama import lib

gguf = pytest.importorskip("gguf")
DEMO_MODEL = Path(__file__).parents[1] / "ggext/data/demo-model"

ATOMS = (
    *("the", "Hello", " world", "'s", "'LL", "don't", "I'M", "a", "B", "camelCase", "HTTPServer"),
    *("\xe9", "\xc9", "\xdf", "Stra\xdfe", "\u0416", "\u0436", "\xc0B", "\u01c5", "\xaa"),
    *("\u65e5\u672c\u8a9e", "\u304b\u306a", "\u30ab\u30ca", "\ud55c\uad6d\uc5b4"),
    *("\u0e44\u0e17\u0e22", "\u0939\u093f\u0928\u094d\u0926\u0940"),
    *("\u0627\u0644\u0639\u064e\u0631", "\u05e2\u05d1", "e\u0301", "n\u0303o", "\u0301"),
    *("\u20dd", "\U0001f642", "\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7"),
    *("\u2764\ufe0f", "\xbd", "\xb2", "\u2167", "\u0663", "\uff11", "\U0001d7d8", "\U00010400"),
    *("0", "1", "12", "123", "1234", "12345", "3.14", "1,000", "0xFF", " ", "  ", "   "),
    *("        ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\x0b", "\xa0"),
    *("\u3000", "\x85", "\u200b", "\ufeff", "\u2028", "\x1c", "\x7f", "\u180e", "!", "?!", "..."),
    *("--", "\u2014", "\u201cq\u201d", "$", "\u20ac", "+", "==", "->", "</", "()", "[]", "{}"),
    *("`", "~", "^", "|", "\\", "//", "#include", "_", "snake_case", "x=1;", "\u3002"),
    *("def f(x):\n    return x\n", "if (a<b) {\n\treturn;\n}\n", "\u2581", "\u2581\u2581"),
    *("\u0120", "<0x0A>", "[PAD3]", "aaaaaaa", "=====", "\ud7ff", "\ue000", "\U0010ffff"),
    *("\u2019s", "\uff01"),
)  # fmt: skip


def strings(count: int, specials: Iterable[str] = (), seed: int = 1) -> list[str]:
    """Awkward texts: every atom alone, then random runs of atoms and of characters.

    The random characters are of Unicode 3.2, because llama.cpp's tables are older than those of
    `tokenizers`: some 4,400 letters and marks of Unicode 15.1 and 16 are no letters to llama.cpp.
    """
    source = random.Random(seed)
    atoms = [*ATOMS, *list(specials) * 3]
    texts = ["", *atoms]
    known = [chr(c) for c in range(1, 0xD800) if unicodedata.ucd_3_2_0.category(chr(c)) != "Cn"]
    known.remove("\u017f")  # long s: an s in (?i:'s) to `tokenizers`, not to llama.cpp
    while len(texts) < count:
        parts = (
            source.choice(atoms) if source.random() < 0.85 else source.choice(known)
            for _ in range(source.choice((1, 2, 2, 3, 4, 6, 10, 20)))
        )
        texts.append("".join(parts))
    return texts


class LlamaCpp:
    """llama.cpp's tokenizer, of a vocabulary-only GGUF file."""

    def __init__(self, vocabulary: Vocabulary, path: Path) -> None:
        pytest.importorskip("llama_cpp")
        self.lib = lib()
        write_gguf(vocabulary, path)
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), vocabulary_only())
        assert self.model, "llama.cpp refused the vocabulary"
        self.vocab = self.lib.llama_model_get_vocab(self.model)

    def encode(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (self.lib.llama_token * room)()
        args = (self.vocab, data, len(data), ids, room, add_special, parse_special)
        count = self.lib.llama_tokenize(*args)
        assert count >= 0
        return list(ids[:count])

    def close(self) -> None:
        self.lib.llama_model_free(self.model)


def vocabulary_only() -> Any:
    params = lib().llama_model_default_params()
    params.vocab_only = True
    return params


def write_gguf(vocabulary: Vocabulary, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_uint32("llama.context_length", 64)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    adders = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
    for key, value in vocabulary.metadata().items():
        adders.get(type(value), writer.add_array)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


Load = Callable[[Vocabulary], LlamaCpp]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    opened: list[LlamaCpp] = []

    def open_one(vocabulary: Vocabulary) -> LlamaCpp:
        opened.append(LlamaCpp(vocabulary, tmp_path / f"vocabulary-{len(opened)}.gguf"))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def differences(original: Any, llama: LlamaCpp, texts: Iterable[str]) -> list[str]:
    """Texts with other ids in llama.cpp than in `tokenizers`, special tokens parsed or as text."""
    found = []
    for parse in (True, False):
        original.encode_special_tokens = not parse
        for text in texts:
            ids = original.encode(text, add_special_tokens=False).ids
            if ids != llama.encode(text, parse_special=parse):
                found.append(text)
    return sorted(found, key=len)[:5]


# tokenizer.json files that the tests build ------------------------------------------------------

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
EOS = "<|end|>"


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in of each byte."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


def split_steps(*regexes: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False} for r in regexes
    ]
    return {"type": "Sequence", "pretokenizers": [*steps, BYTE_LEVEL | {"use_regex": False}]}


def added(first: int, *texts: str, special: bool = True) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": first + i, "content": t, "special": special, **flags} for i, t in enumerate(texts)]


def tokenizer_json(
    vocab: dict[str, int], merges: list[list[str]], pre_tokenizer: object, **other: Any
) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    root = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(len(vocab), EOS),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": None,
    }
    model |= other.pop("model", {})
    return root | other | {"model": model}


def save(folder: Path, root: object, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    contents = {"tokenizer.json": root, "tokenizer_config.json": {"eos_token": EOS}}
    contents |= {f"{name}.json": content for name, content in files.items()}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def tiny(**changes: Any) -> dict[str, Any]:
    """The smallest good tokenizer.json: the bytes, one merge, one special token (257)."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())} | {"ab": 256}
    return tokenizer_json(vocab, [["a", "b"]], BYTE_LEVEL | {"use_regex": True}, **changes)


@pytest.fixture(scope="session")
def crossing() -> tuple[dict[str, int], list[list[str]]]:
    """A vocabulary whose merges cross every border of words: any other split shows in the ids."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    trained.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    trained.train_from_iterator(strings(3000, seed=9), trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], model["merges"]


# SentencePiece ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "size"), [("tokenizers/llama2", 32000), ("models/stories260K", 512)])
def test_sentencepiece_ids(shared: Path, load: Load, folder: str, size: int) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    original = sentencepiece.SentencePieceProcessor(str(shared / folder / "tokenizer.model"))
    vocabulary = read_vocabulary(shared / folder, size)
    assert vocabulary.tokens == tuple(original.id_to_piece(i) for i in range(size))
    assert vocabulary.scores == tuple(original.get_score(i) for i in range(size))
    assert (vocabulary.model, vocabulary.pre) == ("llama", "default")
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (1, 0, 1)
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unknown": 0}
    llama = load(vocabulary)
    texts = strings(2500, ("<s>", "</s>", "<unk>"))
    assert [text for text in texts if original.encode(text) != llama.encode(text)] == []
    assert llama.encode("hi", add_special=True) == [1, *original.encode("hi")]
    assert llama.encode("</s>", parse_special=True) == [2]


def train_sentencepiece(folder: Path, **options: Any) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [" ".join(ATOMS[i : i + 12]).replace("\n", " ") for i in range(len(ATOMS))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        **{"vocab_size": 500, "byte_fallback": True, "model_type": "bpe"}
        | {"hard_vocab_limit": False, "normalization_rule_name": "identity"}
        | options,
    )
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))


def test_sentencepiece_without_prefix_and_with_user_defined_pieces(tmp_path: Path, load: Load) -> None:
    original = train_sentencepiece(
        tmp_path,
        user_defined_symbols=["[INST]", "\u2581\u2581\u2581"],
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )
    vocabulary = read_vocabulary(tmp_path, len(original) + 2)
    assert vocabulary.add_space_prefix is False
    assert vocabulary.token_types[original.piece_to_id("[INST]")] == USER_DEFINED
    assert vocabulary.tokens[original.piece_to_id("\u2581\u2581\u2581")] == "   "
    assert vocabulary.token_types[-2:] == (UNUSED, UNUSED)
    assert vocabulary.notes == ()
    llama = load(vocabulary)
    # U+2581 itself in a text is a space to SentencePiece before user-defined pieces are looked for
    texts = [text for text in strings(2500, ("[INST]", "   ")) if "\u2581" not in text]
    assert [text for text in texts if original.encode(text) != llama.encode(text)] == []


def test_sentencepiece_that_normalizes_says_so(tmp_path: Path) -> None:
    train_sentencepiece(tmp_path, normalization_rule_name="nfkc", user_defined_symbols=["[X]"])
    notes = read_vocabulary(tmp_path, 1000).notes
    assert [note.split(",")[0] for note in notes] == [
        "the SentencePiece model normalizes text (precompiled_charsmap)",
        "the SentencePiece model removes repeated spaces",
        "llama.cpp puts a space between a user-defined piece and the text after it",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "is a SentencePiece Unigram model"),
        ({"byte_fallback": False}, "lacks 256 of the 256 byte tokens"),
        ({"treat_whitespace_as_suffix": True}, "has treat_whitespace_as_suffix"),
    ],
    ids=["unigram", "no-bytes", "suffix"],
)
def test_sentencepiece_that_llama_cpp_cannot_do(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    train_sentencepiece(tmp_path, **options)
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(tmp_path, 1000)


def llama2_json(vocabulary: Vocabulary, **steps: Any) -> dict[str, Any]:
    """Llama 2's tokenizer.json, made from its SentencePiece model as transformers makes it."""
    assert vocabulary.scores is not None
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    scores = vocabulary.scores
    merges: list[list[str]] = []
    for number in sorted(range(len(ids)), key=lambda i: -scores[i]):
        text = vocabulary.tokens[number]
        if vocabulary.token_types[number] == NORMAL:
            cuts = [(text[:k], text[k:]) for k in range(1, len(text))]
            pairs = [(ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids]
            merges += [[a, b] for _, _, a, b in sorted(pairs)]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return tokenizer_json(
        ids,
        merges,
        steps.get("pre_tokenizer"),
        normalizer=steps.get("normalizer"),
        added_tokens=added(0, "<unk>", "<s>", "</s>"),
        post_processor=template,
        model={"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"},
    )


def test_llama2_json_without_its_model(shared: Path, tmp_path: Path, load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = read_vocabulary(shared / "tokenizers/llama2", 32000)
    prepend = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    root = llama2_json(model, normalizer={"type": "Sequence", "normalizers": prepend})
    save(tmp_path, root, tokenizer_config={"eos_token": {"content": "</s>"}})
    vocabulary = read_vocabulary(tmp_path, 32000)
    assert vocabulary.tokens == model.tokens
    assert vocabulary.token_types == model.token_types
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unknown": 0}
    assert (vocabulary.model, vocabulary.add_bos, vocabulary.add_space_prefix) == ("llama", 1, 1)
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert differences(original, load(vocabulary), strings(2500, ("<s>", "</s>"))) == []

    # Metaspace (transformers' legacy=False): no space before a text that begins with one, and
    # none after a special token, where llama.cpp always puts one
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"}
    root = llama2_json(model, pre_tokenizer=metaspace | {"split": False})
    save(tmp_path, root, tokenizer_config={"eos_token": "</s>"})
    vocabulary = read_vocabulary(tmp_path, 32000)
    assert "Metaspace" in vocabulary.notes[0]
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [text for text in strings(2500) if text and not text.startswith((" ", "\u2581"))]
    assert differences(original, load(vocabulary), texts) == []


# byte-level BPE ---------------------------------------------------------------------------------


def test_gpt_neox(shared: Path, tmp_path: Path, load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = shared / "tokenizers/gpt_neox_20b/tokenizer.json"
    shutil.copy(path, tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 0}')
    vocabulary = read_vocabulary(tmp_path, 50432)
    assert (vocabulary.pre, vocabulary.special_ids["eos"], vocabulary.add_bos) == (
        "gpt-2",
        0,
        False,
    )
    assert vocabulary.tokens[-1] == "[PAD50431]"
    specials = ("<|endoftext|>", "<|im_end|>", "RWKV", " " * 24, " " * 5)
    # the tokenizer turns text into NFC, llama.cpp does not (it is in the notes)
    texts = [t for t in strings(2500, specials) if unicodedata.is_normalized("NFC", t)]
    original = tokenizers.Tokenizer.from_file(str(path))
    assert differences(original, load(vocabulary), texts) == []
    assert "NFC" in vocabulary.notes[0]


def llama3_json(ranks_file: Path) -> dict[str, Any]:
    """Llama 3's tokenizer.json, made from its tiktoken ranks as transformers makes it."""
    lines = (line.split() for line in ranks_file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    symbols = byte_symbols()
    merges: list[list[str]] = []
    for token in ranks:
        cuts = [(token[:k], token[k:]) for k in range(1, len(token))]
        pairs = [(ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        for _, _, left, right in sorted(pairs):
            merges.append(["".join(symbols[byte] for byte in part) for part in (left, right)])
    vocab = {"".join(symbols[byte] for byte in token): rank for token, rank in ranks.items()}
    names = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
    )
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": names[0], "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {names[0]: {"id": names[0], "ids": [len(vocab)], "tokens": [names[0]]}},
    }
    byte_level = BYTE_LEVEL | {"use_regex": True}
    return tokenizer_json(
        vocab,
        merges,
        split_steps(pretokenizers.LLAMA3),
        added_tokens=added(len(vocab), *names),
        post_processor={"type": "Sequence", "processors": [byte_level, template]},
        model={"ignore_merges": True},
    )


def test_llama3(shared: Path, tmp_path: Path, load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    save(
        tmp_path,
        llama3_json(shared / "tokenizers/llama3/tokenizer.model"),
        tokenizer_config={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        generation_config={"eos_token_id": [128001, 128003, 128004]},
    )
    # the repository of Llama 3 may hold the tiktoken ranks under this name: no SentencePiece
    shutil.copy(shared / "tokenizers/llama3/tokenizer.model", tmp_path)
    vocabulary = read_vocabulary(tmp_path, 128256)
    assert vocabulary.pre == "llama-bpe"
    ids = {"bos": 128000, "eos": 128004, "eot": 128004, "eom": 128003}
    assert vocabulary.special_ids == ids
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.notes) == (True, False, ())
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    llama = load(vocabulary)
    specials = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>")
    assert differences(original, llama, strings(2500, specials)) == []
    assert llama.encode("hi", add_special=True) == original.encode("hi").ids


def restrict(name: str, texts: list[str]) -> list[str]:
    """The texts on which llama.cpp's expression of this name is the original one.

    tekken and gpt-4o: llama.cpp's has no case for non-ASCII letters and leaves marks out.
    """
    if name not in {"tekken", "gpt-4o"}:
        return texts

    def plain(c: str) -> bool:
        kind = unicodedata.category(c)
        return kind[0] != "M" and (c.isascii() or kind not in {"Lu", "Ll", "Lt"})

    return [text for text in texts if all(map(plain, text))]


@pytest.mark.parametrize("row", pretokenizers.TABLE, ids=lambda row: row.name)
def test_each_pre_tokenizer(
    row: pretokenizers.PreTokenizer,
    crossing: tuple[dict[str, int], list[list[str]]],
    tmp_path: Path,
    load: Load,
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    root = tokenizer_json(*crossing, split_steps(*row.splits), model={"ignore_merges": row.ignore_merges})
    vocabulary = read_vocabulary(save(tmp_path, root), len(crossing[0]) + 1)
    assert vocabulary.pre == row.name
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = restrict(row.name, strings(2600 if not row.notes else 4000, (EOS,), seed=3))
    assert len(texts) > 2000
    assert differences(original, load(vocabulary), texts) == []


def test_a_long_run_does_not_end_the_process(crossing: tuple[dict[str, int], list[list[str]]], tmp_path: Path) -> None:
    """llama.cpp's std::regex overflows the stack on 30,000 equal characters; the model cuts the run."""
    from ggext.runtime.engine import Model

    row = next(row for row in pretokenizers.TABLE if row.name == "tekken")
    root = tokenizer_json(*crossing, split_steps(*row.splits), model={"ignore_merges": row.ignore_merges})
    vocabulary = read_vocabulary(save(tmp_path, root), len(crossing[0]) + 1)
    path = tmp_path / "long.gguf"
    write_gguf(vocabulary, path)
    handle = lib().llama_model_load_from_file(str(path).encode(), vocabulary_only())
    model = Model(path, read_gguf(path), handle, None)
    try:
        text = "the " + "a" * 50_000 + " end " + "=" * 50_000 + EOS
        tokens = model.tokenize(text, parse_special=True)
        assert b"".join(map(model.token_to_piece, tokens)).decode() == text.removesuffix(EOS)
        assert model.is_eog(tokens[-1])
    finally:
        model.close()


@pytest.mark.parametrize("name", ["tekken", "gpt-4o"])
def test_the_noted_difference_of_case_is_real(
    name: str, crossing: tuple[dict[str, int], list[list[str]]], tmp_path: Path, load: Load
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    row = next(row for row in pretokenizers.TABLE if row.name == name)
    root = tokenizer_json(*crossing, split_steps(*row.splits), model={"ignore_merges": row.ignore_merges})
    vocabulary = read_vocabulary(save(tmp_path, root), len(crossing[0]) + 1)
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert differences(original, load(vocabulary), ["e\u0301"]) == ["e\u0301"] * 2
    assert "combining marks" in vocabulary.notes[0]


def test_demo_model(load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    if not (DEMO_MODEL / "tokenizer.json").exists():
        pytest.skip("ggext/data/demo-model has no tokenizer.json yet")
    size = json.loads((DEMO_MODEL / "config.json").read_text())["vocab_size"]
    vocabulary = read_vocabulary(DEMO_MODEL, size)
    original = tokenizers.Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    specials = [t for t, k in zip(vocabulary.tokens, vocabulary.token_types, strict=True) if k == 3]
    assert vocabulary.pre == "gpt-2"
    assert differences(original, load(vocabulary), strings(2500, specials)) == []


DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (BYTE_LEVEL, False, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}, False, "smollm"),
        (split_steps(pretokenizers.GPT2), False, "gpt-2"),
        (split_steps(pretokenizers.LLAMA3), False, "dbrx"),
        # every token can be merged, so that ignore_merges makes no difference
        (split_steps(pretokenizers.QWEN2), True, "qwen2"),
        (split_steps(pretokenizers.TEKKEN), False, "tekken"),
    ],
    ids=["gpt2", "digits", "gpt2-split", "llama3-merging", "qwen2-ignoring", "tekken-merging"],
)
def test_pre_tokenizer_name(tmp_path: Path, pre_tokenizer: object, ignore_merges: bool, name: str) -> None:
    root = tiny(model={"ignore_merges": ignore_merges}) | {"pre_tokenizer": pre_tokenizer}
    assert read_vocabulary(save(tmp_path, root), 258).pre == name


# special tokens, flags, templates ---------------------------------------------------------------


def test_metadata(tmp_path: Path) -> None:
    config = {"eos_token": EOS, "bos_token": EOS, "sep_token": EOS, "pad_token": "[none]"}
    templates = [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}]
    root = tiny() | {"added_tokens": [*added(257, EOS), *added(258, "\u2581x", special=False)]}
    save(tmp_path, root, tokenizer_config=config | {"chat_template": templates})
    metadata = read_vocabulary(tmp_path, 260).metadata()
    tokens = metadata.pop("tokenizer.ggml.tokens")
    types = metadata.pop("tokenizer.ggml.token_type")
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert tokens[255:] == ["\u00ff", "ab", EOS, "\u2581x", "[PAD259]"]
    assert types[255:] == [NORMAL, NORMAL, CONTROL, USER_DEFINED, UNUSED]
    assert metadata == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.eot_token_id": 257,
        "tokenizer.ggml.seperator_token_id": 257,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "D",
        "tokenizer.chat_template.tool_use": "T",
        "tokenizer.chat_templates": ["tool_use"],
    }


def test_chat_template_files_go_first(tmp_path: Path) -> None:
    save(tmp_path, tiny(), tokenizer_config={"eos_token": EOS, "chat_template": "config"})
    assert read_vocabulary(tmp_path, 258).chat_template == "config"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert read_vocabulary(tmp_path, 258).chat_template == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert read_vocabulary(tmp_path, 258).chat_template == "jinja"


def test_stops_beside_eos(tmp_path: Path) -> None:
    root = tiny() | {"added_tokens": added(257, EOS, "<stop>", "<halt>", "<quit>")}
    config = {"eos_token_id": [257, 258, 259, 260]}
    save(tmp_path, root, tokenizer_config={}, config=config)
    vocabulary = read_vocabulary(tmp_path, 261)
    assert vocabulary.special_ids == {"eos": 257, "eot": 257, "eom": 258}
    assert ["'<halt>'" in note or "'<quit>'" in note for note in vocabulary.notes] == [True, True]


def test_sentencepiece_added_tokens(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "models/stories260K/tokenizer.model", tmp_path)
    decoder = {"513": {"content": "<|im_end|>", "special": True}, "1": {"content": "<s>"}}
    config = {"added_tokens_decoder": decoder, "eos_token": "<|im_end|>", "add_eos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text('{"<extra>": 512}')
    vocabulary = read_vocabulary(tmp_path, 515)
    assert vocabulary.tokens[512:] == ("<extra>", "<|im_end|>", "[PAD514]")
    assert vocabulary.token_types[512:] == (USER_DEFINED, CONTROL, UNUSED)
    assert (vocabulary.token_types[1], vocabulary.token_types[3]) == (CONTROL, BYTE)
    assert vocabulary.special_ids == {"bos": 1, "eos": 513, "unknown": 0, "eot": 513}
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, True)


# hostile and broken files -----------------------------------------------------------------------

TINY = tiny()
VOCAB = TINY["model"]["vocab"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": []}, "model is '.*', expected dict"),
        ({"model": {"type": "Unigram"}}, "is a 'Unigram' tokenizer"),
        ({"model": {"type": "BPE", "vocab": {}}}, "an empty vocabulary"),
        ({"model": {"vocab": VOCAB | {"c2": 256}}}, "has the id 256, which another token has too"),
        ({"model": {"vocab": VOCAB | {"c2": -1}}}, "has the id '-1'"),
        ({"model": {"vocab": VOCAB | {"c2": True}}}, "has the id 'True'"),
        ({"model": {"vocab": VOCAB | {"c2": 1 << 40}}}, "expected an integer from 0 to 4194303"),
        ({"model": {"vocab": VOCAB | {"": 257}}}, "has 0 characters"),
        ({"model": {"vocab": VOCAB | {"x" * 2000: 257}}}, "has 2000 characters"),
        ({"model": {"vocab": VOCAB | {"\ud800": 257}}}, "is not valid Unicode"),
        ({"model": {"vocab": VOCAB | {"a\0": 257}}}, "contains a NUL"),
        ({"model": {"vocab": VOCAB, "merges": [["a", "zz"]]}}, "merge 0 .* names the token 'zz'"),
        ({"model": {"vocab": VOCAB, "merges": ["a b c"]}}, "expected two tokens"),
        ({"model": {"vocab": VOCAB, "merges": [["a", 1]]}}, "expected two tokens"),
        ({"model": TINY["model"] | {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix '</w>'"),
        ({"added_tokens": [1]}, "an added token is no object"),
        ({"added_tokens": [{"id": 257}]}, "expected a string"),
        ({"added_tokens": added(256, EOS, EOS)}, "the tokens 256 and 257 have the same text"),
        ({"added_tokens": []}, "eos_token is '<|end|>', which is not in the vocabulary"),
        ({"added_tokens": added(257, EOS, "a1", "a2")}, "has 260 tokens .* vocab_size .* is 258"),
        ({"normalizer": {"type": "NFKC"}}, "the normalizer .*NFKC.* has no equal"),
        ({"pre_tokenizer": None}, "the pre_tokenizer step 'None' has no equal"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "step 'Whitespace' has no equal"),
        ({"pre_tokenizer": DIGITS}, "does not end in its one ByteLevel step"),
        ({"pre_tokenizer": split_steps(r"\w+")}, r"no pre-tokenizer with the expressions '.*w\+'"),
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "has add_prefix_space"),
        ({"post_processor": {"type": "BertProcessing"}}, "post_processor 'BertProcessing'"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {}}]}},
            "a token of the post_processor is 'None'",
        ),
    ],
)
def test_broken_tokenizer_json(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
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
        ("tokenizer_config.json", b'{"add_bos_token": 1, "eos_token": null}', "no end-of-sequence"),
        ("tokenizer_config.json", b'{"eos_token": "ab", "add_bos_token": 1}', "expected bool"),
        ("tokenizer_config.json", b'{"eos_token": "ab", "add_bos_token": true}', "no bos_token"),
        ("tokenizer_config.json", b'{"eos_token": "ab", "chat_template": 3}', "chat_template is a"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "has the entry 'x'"),
        ("special_tokens_map.json", b'{"bos_token": "?!?"}', "is not in the vocabulary"),
        ("config.json", b'{"bos_token_id": 99999}', "the vocabulary has no such token"),
        ("config.json", b'{"bos_token_id": 1.5}', "has the id '1.5'"),
        ("added_tokens.json", b'{"<new>": "1"}', "has the id"),
        ("chat_template.jinja", b"\xff", "is not UTF-8 text"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str | None) -> None:
    save(tmp_path, TINY)
    (tmp_path / name).write_bytes(content)
    if message is None:  # tokenizer.json is there: a tokenizer.model of another kind is passed over
        assert read_vocabulary(tmp_path, 258).pre == "gpt-2"
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        read_vocabulary(tmp_path, 258)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        read_vocabulary(tmp_path, 10)
    with pytest.raises(CheckpointError, match="is a list of tiktoken ranks"):
        read_vocabulary(shared / "tokenizers/llama3", 10)
    with pytest.raises(CheckpointError, match="vocab_size is 0"):
        read_vocabulary(tmp_path, 0)
    monkeypatch.setattr("ggext.checkpoint.tokenizer.MAX_FILE_BYTES", 1 << 10)
    with pytest.raises(CheckpointError, match="is larger than"):
        read_vocabulary(save(tmp_path, TINY), 258)


def test_every_cut_and_flip_of_a_sentencepiece_model(shared: Path, tmp_path: Path) -> None:
    good = (shared / "models/stories260K/tokenizer.model").read_bytes()
    source = random.Random(5)
    refused = 0
    for _ in range(300):
        bad = bytearray(good[: source.randrange(len(good))] if source.random() < 0.5 else good)
        for _ in range(source.randrange(4)):
            if bad:
                bad[source.randrange(len(bad))] = source.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(bad)
        try:
            read_vocabulary(tmp_path, 512)
        except CheckpointError as error:
            refused += "\n" not in str(error)
    assert refused > 100


def test_llama_form_that_scores_cannot_say(tmp_path: Path) -> None:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["a", "b", "c", "\u2581", "ab", "bc", "abc"]
    vocab = {text: i for i, text in enumerate([*bytes_, *letters])}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    good = [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]
    for merges, message in (
        (good, None),
        (good[:3], "would merge 'a' \\+ 'bc', for which there is no merge"),
        ([good[2], good[0], good[3], good[1]], "are not next to each other"),
    ):
        root = tokenizer_json(vocab, merges, None, normalizer=replace, model={"byte_fallback": True})
        save(tmp_path, root)
        if message is None:
            vocabulary = read_vocabulary(tmp_path, len(vocab) + 1)
            assert vocabulary.add_space_prefix is False
            assert vocabulary.scores is not None
            assert vocabulary.scores[-4:-1] == (-0.0, -1.0, -2.0)
            continue
        with pytest.raises(CheckpointError, match=message):
            read_vocabulary(tmp_path, len(vocab) + 1)
