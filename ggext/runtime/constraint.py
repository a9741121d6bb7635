"""What an answer must follow: a GBNF grammar or a JSON schema, kept token by token by llguidance.

llguidance parses with Earley's algorithm over the bytes of the vocabulary's tokens, within limits
of its own on items, lexer states and the size of a grammar: what is too large is an error and
nothing else. It holds every keyword of a schema that `ggext.runtime.json_schema` lets through.
"""

from __future__ import annotations

import ctypes
import re
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ggext.errors import MissingExtraError, ModelError, UsageError
from ggext.runtime import gbnf, grammar_trial, json_schema
from ggext.runtime.llama import lib

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.model import Model

# What may stand between the parts of JSON: a model that likes spaces would write them without end.
_WHITESPACE = r" |\n[ \t]{0,40}"
# Items of the parser: llguidance's defaults are too few for a list of some thousand words. A step
# may cost the product of the two.
_LIMITS = {
    "max_items_in_row": 20_000,
    "step_max_items": 100_000,
    "max_lexer_states": 50_000,
    "verbose_errors": False,
}
_COMPILE = "ggext.runtime.constraint:compile_seconds"
# llama_token_attr: unknown, unused and control tokens have no text in an answer.
_WITHOUT_TEXT = 1 | 2 | 8
_LONGEST_PIECE = 1 << 16


@dataclass(frozen=True)
class JsonGrammar:
    """A JSON schema that an answer will follow, for `Sampling.grammar`; `json_grammar` makes it."""

    # The schema as JSON: checked, every keyword of it can be held.
    schema: str


Grammar = str | JsonGrammar


def json_grammar(schema: str | Mapping[str, Any] | bool) -> JsonGrammar:
    """The JSON documents that a JSON schema describes, for `Sampling.grammar`.

    Every keyword of the schema is held. Raises UsageError for a keyword that cannot be, by its
    name, and for a schema that is malformed, unsatisfiable or too large.

    >>> json_grammar({"type": "integer", "minimum": 3})
    JsonGrammar(schema='{"type": "integer", "minimum": 3}')
    """
    grammar = JsonGrammar(json_schema.read(schema))
    check(grammar)
    return grammar


@lru_cache(16)
def check(grammar: Grammar) -> None:
    """Raises UsageError for a grammar that is none, or too large: what can be said of it without a
    vocabulary. A large one is tried in a child first (`grammar_trial`)."""
    if isinstance(grammar, str):
        lark = gbnf.to_lark(grammar)
        if lark.size > grammar_trial.SMALL_GRAMMAR:
            grammar_trial.survive(_COMPILE, "grammar", grammar)
        source = _lark_source(re.sub(gbnf.SPELLED_TOKEN, "<[0]>", lark.source))
        failed = "the grammar cannot be followed"
    else:
        if len(grammar.schema) > grammar_trial.SMALL_SCHEMA:
            grammar_trial.survive(_COMPILE, "schema", grammar.schema)
        source = _json_source(grammar.schema)
        failed = "the JSON schema cannot be made into a grammar"
    is_wrong, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(
        source, limits=_limits()
    )
    if is_wrong:
        raise UsageError(f"{failed}: {_line(messages[0])}")
    matcher = _matcher(_bytes_tokenizer(), source)
    matcher.compute_bitmask()
    if matcher.is_error():
        raise UsageError(f"{failed}: {_line(matcher.get_error())}")


def compile_seconds(kind: str, text: str) -> float:
    """`check` in a child: the CPU time that it takes. Raises UsageError."""
    grammar = text if kind == "grammar" else JsonGrammar(text)
    return grammar_trial.seconds(lambda: check(grammar))


def is_complete(grammar: Grammar, text: str) -> bool:
    """Whether a whole answer follows the grammar: one that was cut does not.

    >>> is_complete(json_grammar({"type": "integer"}), "12"), is_complete('root ::= "yes"', "ye")
    (True, False)
    """
    if isinstance(grammar, str):
        lark = gbnf.to_lark(grammar)
        if lark.tokens or lark.spelled:  # they leave no text that could be looked at
            return True
        source = _lark_source(lark.source)
    else:
        source = _json_source(grammar.schema)
    matcher = _matcher(_bytes_tokenizer(), source)
    data = text.encode("utf-8", "replace")
    return bool(
        matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()
    )


class Constraint:
    """A grammar over a model's tokens, and how far an answer is in it.

    Raises UsageError for a grammar that is none, ModelError for a vocabulary that follows none.
    """

    def __init__(self, grammar: Grammar, model: Model) -> None:
        self._n_vocab = model.n_vocab
        if isinstance(grammar, str):
            source = _lark_source(_with_tokens(gbnf.to_lark(grammar), model))
        else:
            source = _json_source(grammar.schema)
        self._matcher = _matcher(_tokenizer(model), source)
        if self._matcher.is_error():
            raise UsageError(
                f"the grammar cannot be followed: {_line(self._matcher.get_error())}"
            )

    def allows(self, token: int) -> bool:
        """Whether the answer may go on, or end, with the token."""
        return bool(self._matcher.validate_tokens([token]) == 1)

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may follow, (n_vocab,). Raises ModelError where that is too complex."""
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check_matcher()
        return np.unpackbits(bits, bitorder="little")[: self._n_vocab].astype(bool)

    def take(self, token: int) -> None:
        """Goes on by a token that it `allows`. Raises ModelError."""
        self._matcher.consume_token(token)
        self._check_matcher()

    def _check_matcher(self) -> None:
        if self._matcher.is_error():
            raise ModelError(
                f"the grammar cannot be followed: {_line(self._matcher.get_error())}"
            )


def _llguidance() -> Any:
    try:
        return import_module("llguidance")
    except ImportError as error:
        raise MissingExtraError(
            "llguidance", "run", "constraining an answer"
        ) from error


def _json_source(schema: str) -> str:
    return str(
        _llguidance().LLMatcher.grammar_from_json_schema(
            json_schema.prepared(schema), overrides={"whitespace_pattern": _WHITESPACE}
        )
    )


def _lark_source(lark: str) -> str:
    return str(_llguidance().LLMatcher.grammar_from_lark(lark))


def _matcher(tokenizer: Any, source: str) -> Any:
    return _llguidance().LLMatcher(tokenizer, source, log_level=0, limits=_limits())


def _limits() -> Any:
    return _llguidance().LLParserLimits(**_LIMITS)


def _with_tokens(lark: gbnf.Lark, model: Model) -> str:
    """The grammar with the numbers of the tokens that it names. Raises UsageError."""
    for token in lark.tokens:
        if token >= model.n_vocab:
            raise UsageError(
                f"the grammar names token {token}, but the vocabulary has {model.n_vocab}"
            )
    numbers = []
    for spelled in lark.spelled:
        tokens = model.tokenize(spelled, add_special=False, parse_special=True)
        if len(tokens) != 1:
            raise UsageError(
                f"the grammar names {spelled:.80}, which is no token of the vocabulary"
            )
        numbers.append(tokens[0])
    return re.sub(
        gbnf.SPELLED_TOKEN,
        lambda mark: f"<[{mark[1]}{numbers[int(mark[2])]}]>",
        lark.source,
    )


class _Vocabulary:
    """A vocabulary as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], last: int, special: list[int]) -> None:
        self.tokens = tokens
        self.eos_token_id = last
        self.special_token_ids = special
        without_text = set(special)
        self._numbers: dict[bytes, int] = {}
        for number, piece in enumerate(tokens):
            if piece and number not in without_text:
                self._numbers.setdefault(piece, number)
        self._longest = max(map(len, self._numbers), default=1)

    def __call__(self, text: bytes) -> list[int]:
        """Tokens for what a grammar forces, the longest first; any spelling would do."""
        tokens: list[int] = []
        at = 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._numbers), None)
            if end is None:
                break
            tokens.append(self._numbers[text[at:end]])
            at = end
        return tokens


_tokenizers: weakref.WeakKeyDictionary[Model, Any] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _tokenizer(model: Model) -> Any:
    """llguidance's view of a vocabulary: made once, half a second for 50,000 tokens."""
    module = _llguidance()
    with _lock:
        if model not in _tokenizers:
            tokens, special, last = _pieces(model)
            if not last:
                raise ModelError(
                    f"{model.path} has no token that ends an answer: no grammar can be followed"
                )
            vocabulary = _Vocabulary(tokens, last[0], sorted({*special, *last}))
            wrapper = module.TokenizerWrapper(vocabulary)
            _tokenizers[model] = module.LLTokenizer(wrapper, eos_token=last)
        return _tokenizers[model]


def _pieces(model: Model) -> tuple[list[bytes], list[int], list[int]]:
    """Every token's bytes, the tokens whose bytes are no text of an answer, those that end one."""
    module = lib()
    vocabulary = model.vocabulary()
    to_piece = module.llama_token_to_piece
    attribute = module.llama_vocab_get_attr
    ends = module.llama_vocab_is_eog
    buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
    tokens: list[bytes] = []
    special: list[int] = []
    last: list[int] = []
    for token in range(model.n_vocab):
        size = to_piece(vocabulary, token, buffer, _LONGEST_PIECE, 0, True)
        if size < 0:
            raise ModelError(
                f"{model.path}: token {token} has more than {_LONGEST_PIECE} bytes"
            )
        tokens.append(ctypes.string_at(buffer, size))
        if attribute(vocabulary, token) & _WITHOUT_TEXT:
            special.append(token)
        if ends(
            vocabulary, token
        ):  # of any kind: a file may call its EOS a normal token
            last.append(token)
    return tokens, special, last


@cache
def _bytes_tokenizer() -> Any:
    module = _llguidance()
    tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]
    return module.LLTokenizer(module.TokenizerWrapper(_Vocabulary(tokens, 256, [256])))


def _line(message: str) -> str:
    """One printable line of at most 200 characters."""
    words = " ".join(message.partition("<backtrace>")[0].split())
    return "".join(c if c.isprintable() else "?" for c in words)[:200]
