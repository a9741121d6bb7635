"""A GGUF file's vocabulary as a ``tokenizer.json``: byte-level BPE, and SentencePiece's BPE."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ggext.checkpoint.files import BYTE, CONTROL, UNKNOWN, USER_DEFINED
from ggext.checkpoint.vocabulary.pretokenizers import BYTES, TABLE, PreTokenizer
from ggext.errors import GgufError

_KEY = "tokenizer.ggml."
_SPACE = "▁"


class Vocabulary:
    """What a file's keys say. ``fields``: full key → value."""

    def __init__(self, fields: Mapping[str, Any], path: str) -> None:
        self.path = path
        self._fields = fields
        self.model = str(self.get("model", ""))
        self.tokens: list[str] = list(self.get("tokens", []))
        self.types: list[int] = list(self.get("token_type", [1] * len(self.tokens)))
        if self.model not in ("gpt2", "llama"):
            raise GgufError(
                f"{path}: a vocabulary of the kind {self.model!r} is not exported; known: gpt2, "
                "llama"
            )
        if len(self.types) != len(self.tokens):
            raise GgufError(f"{path}: {_KEY}token_type and tokens differ in length")

    def get(self, key: str, default: Any) -> Any:
        """The value of a key of the tokenizer."""
        return self._fields.get(_KEY + key, default)

    def text(self, role: str) -> str | None:
        """The token with a role such as ``bos``."""
        number = self.get(f"{role}_token_id", None)
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            return None
        return self.tokens[number]

    def adds(self, role: str) -> bool:
        """Whether llama.cpp puts the token around a text; of SentencePiece the BOS by default."""
        default = role == "bos" and self.model == "llama"
        return (
            bool(self.get(f"add_{role}_token", default)) and self.text(role) is not None
        )

    def tokenizer(self) -> dict[str, Any]:
        """``tokenizer.json``. Raises ``GgufError`` for a form that is not known."""
        made = self._byte_level() if self.model == "gpt2" else self._sentencepiece()
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": list(self._added()),
            "post_processor": self._template(),
        } | made

    def config(self) -> dict[str, Any]:
        """``tokenizer_config.json``."""
        roles = {
            "bos_token": self.text("bos"),
            "eos_token": self.text("eos"),
            "unk_token": self.text("unknown"),
            "pad_token": self.text("padding"),
        }
        template = self._fields.get("tokenizer.chat_template")
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: text for name, text in roles.items() if text is not None},
            "add_bos_token": self.adds("bos"),
            "add_eos_token": self.adds("eos"),
            "clean_up_tokenization_spaces": False,
            **({"chat_template": template} if isinstance(template, str) else {}),
        }

    def _added(self) -> Iterator[dict[str, Any]]:
        for number, (text, kind) in enumerate(
            zip(self.tokens, self.types, strict=True)
        ):
            if kind in (CONTROL, USER_DEFINED, UNKNOWN):
                yield {
                    "id": number,
                    "content": text,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": kind != USER_DEFINED,
                }

    def _template(self) -> dict[str, Any] | None:
        around = {role: self.text(role) for role in ("bos", "eos") if self.adds(role)}
        if not around:
            return None
        text = {"Sequence": {"id": "A", "type_id": 0}}
        pieces: list[dict[str, Any]] = [text]
        if "bos" in around:
            pieces.insert(0, {"SpecialToken": {"id": around["bos"], "type_id": 0}})
        if "eos" in around:
            pieces.append({"SpecialToken": {"id": around["eos"], "type_id": 0}})
        special = {
            str(token): {
                "id": token,
                "ids": [self.get(f"{role}_token_id", 0)],
                "tokens": [token],
            }
            for role, token in around.items()
        }
        return {
            "type": "TemplateProcessing",
            "single": pieces,
            "pair": [*pieces, *json.loads(json.dumps(pieces).replace('"A"', '"B"'))],
            "special_tokens": special,
        }

    def _vocabulary(self) -> dict[str, int]:
        return {text: number for number, text in enumerate(self.tokens)}

    def _byte_level(self) -> dict[str, Any]:
        row = self._pre_tokenizer()
        steps: list[dict[str, Any]] = [
            _bytes(use_regex=False)
            if step == BYTES
            else {
                "type": "Split",
                "pattern": {"Regex": step},
                "behavior": "Isolated",
                "invert": False,
            }
            for step in row.steps
        ]
        merges = [merge.split(" ", 1) for merge in self.get("merges", [])]
        return {
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "decoder": _bytes(use_regex=True),
            "model": _bpe(self._vocabulary(), merges)
            | {"ignore_merges": row.ignore_merges},
        }

    def _pre_tokenizer(self) -> PreTokenizer:
        name = self.get("pre", None)
        row = next((row for row in TABLE if row.name == name), None)
        if row is None:
            raise GgufError(
                f"{self.path}: how {_KEY}pre {name!r} splits a text is not known here; known: "
                f"{', '.join(sorted({row.name for row in TABLE}))}"
            )
        return row

    def _sentencepiece(self) -> dict[str, Any]:
        scores = self.get("scores", [])
        if len(scores) != len(self.tokens):
            raise GgufError(f"{self.path}: {_KEY}scores and tokens differ in length")
        prefix = bool(self.get("add_space_prefix", True))
        normalizers = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        model = _bpe(self._vocabulary(), self._merges(scores))
        model |= {
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": self.text("unknown"),
        }
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*normalizers, replace]},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": model,
        }

    def _merges(self, scores: list[float]) -> list[list[str]]:
        """SentencePiece joins the pair whose piece has the best score; among pairs that make the
        same piece their order does not matter."""
        known = {
            text
            for text, kind in zip(self.tokens, self.types, strict=True)
            if kind not in (CONTROL, UNKNOWN, BYTE)
        }
        order = sorted(range(len(scores)), key=lambda number: -scores[number])
        return [
            [text[:cut], text[cut:]]
            for text in (self.tokens[number] for number in order)
            if text in known
            for cut in range(1, len(text))
            if text[:cut] in known and text[cut:] in known
        ]


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _bpe(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }
