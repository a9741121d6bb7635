r"""Which ``tokenizer.ggml.pre`` says the same as a tokenizer.json's ``pre_tokenizer``.

llama.cpp holds its own regular expressions, one set a name, compiled in. So the name is found by
what the checkpoint's own pre-tokenizer *does*: its steps are brought to one form (``split``
expressions and the step to bytes) and looked up in ``TABLE``. Nothing is guessed: an unknown form
is an error.

Each row was compared with the pinned llama.cpp on thousands of strings by a tokenizer whose merges
cross all borders (tests/checkpoint/test_pre_tokenizers.py), and gpt-2 to qwen35 on each code point
up to U+1FFFF in nine surroundings. There, two differences hold for every row: llama.cpp's character
tables are Unicode 15's, so some 4,400 letters and marks that later versions added are no letters to
it; and it does not take U+017F (long s) for an s in "'s". Where its expression is only nearly the
checkpoint's, the row has a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unicodedata import category

from ggext.checkpoint.files import get, quote
from ggext.checkpoint.vocabulary.byte_level import text_of
from ggext.errors import CheckpointError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
LLAMA3 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    + _SPACES
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"
)
TEKKEN = (
    f"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|" + _SPACES
)
GPT4O = (
    f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|" + _SPACES
)
DIGIT = r"\p{N}"
DIGITS_3 = r"\p{N}{1,3}"
MINICPM5 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|"
    + _SPACES
)

SEED_CODER = QWEN2.replace(r"\p{N}|", r"\p{N}{1}|").replace(
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+"
)
# tiktoken's cl100k_base and its form with single digits: other words for the same matches. The
# suffixes exclude each other, nothing can be given back after ?+ and ++, and \s*[\r\n] runs to the
# last line break as \s*[\r\n]+ does.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|" + _SPACES
)
SAME = {CL100K: LLAMA3, CL100K.replace("{1,3}", ""): QWEN2}

_NOT_HAN_UPPER, _NOT_HAN_LOWER = (
    f"{letters[:-1]}&&[^\\p{{Han}}]]" for letters in (_UPPER, _LOWER)
)
KIMI_ALTERNATIVES = (
    r"[\p{Han}]+",
    f"{_LEAD}{_NOT_HAN_UPPER}*{_NOT_HAN_LOWER}+{_CONTRACTIONS}?",
    f"{_LEAD}{_NOT_HAN_UPPER}+{_NOT_HAN_LOWER}*{_CONTRACTIONS}?",
    *(r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
)
KIMI = "|".join(KIMI_ALTERNATIVES)
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"  # the step Punctuation, Contiguous
NUMBER = r"\p{N}+"
LINES = r"[^\n]+|[\n]+"
# the step that turns text into byte symbols; the last one where a row does not say otherwise
BYTES = "bytes"
_HAN_DEEPSEEK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_LETTERS_DEEPSEEK = (
    "\\s?[A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-"
    "\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-"
    "\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-"
    "\U000118df\U0001e900-\U0001e943]+"
)
DEEPSEEK_LLM = (
    "[\r\n]",
    _LETTERS_DEEPSEEK,
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"\s+$",
    _HAN_DEEPSEEK,
)
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_DEEPSEEK, DIGIT)

_CASE_NOTE = (
    "llama.cpp's expression takes every non-ASCII letter for both upper and lower case: a word in "
    "which the case "
    "changes may be split elsewhere than in the original"
)
_MARKS_NOTE = (
    "llama.cpp's expression cuts words at combining marks, which the original does not: Hindi, "
    "Thai, vowelled Arabic "
    "and the like become more tokens than the model was trained on"
)
# std::regex recurses once a character: measured, 10,000 letters pass and 30,000 end the process.
_STACK_NOTE = (
    "llama.cpp matches it with std::regex, which overflows the stack and ends the process on a run "
    "of more than about 10,000 letters, signs or spaces without a break"
)


_CAMEL_NOTE = (
    "llama.cpp leaves words as camelCase whole, "
    "which the original cuts before the capital"
)
_NEEDS = (
    "a llama.cpp from before May 2026 does not know this name and refuses the file; the one that "
    "it knows, gpt-4o, "
    "cuts words at combining marks"
)
_SPACE_NOTE = (
    "white space beyond ASCII (U+3000, U+2028) "
    "may be split elsewhere than in the original"
)


@dataclass(frozen=True)
class PreTokenizer:
    """One name of llama.cpp: the split expressions it stands for, and what goes with the name."""

    name: str
    splits: tuple[str, ...]
    # Whether llama.cpp takes a word that is a token whole, without merging, under this name.
    ignore_merges: bool = False
    # Whether a merge would join what the checkpoint cuts and llama.cpp does not. The two are the
    # same for a vocabulary without such merges.
    joins: Callable[[str, str], bool] | None = None
    # On which text llama.cpp's own expression differs.
    notes: tuple[str, ...] = ()
    # Which llama.cpp knows the name.
    needs: str = ""

    @property
    def steps(self) -> tuple[str, ...]:
        return self.splits if BYTES in self.splits else (*self.splits, BYTES)


def _numeral_to_other(left: str, right: str) -> bool:
    """Falcon cuts its byte symbols between numerals and others; llama.cpp leaves " 12" whole."""
    return (category(left[-1])[0] == "N") != (category(right[0])[0] == "N")


def _two_numerals(left: str, right: str) -> bool:
    """DeepSeek cuts between numerals; llama.cpp's expression for it does not."""
    return any(
        category(a)[0] == category(b)[0] == "N"
        for a, b in pairwise(text_of(left + right))
    )


TABLE = (
    PreTokenizer("gpt-2", (GPT2,)),
    PreTokenizer("smollm", (DIGIT, GPT2)),
    PreTokenizer("llama-bpe", (LLAMA3,), ignore_merges=True),
    PreTokenizer("dbrx", (LLAMA3,)),
    PreTokenizer("qwen2", (QWEN2,)),
    PreTokenizer("qwen35", (QWEN35,)),
    PreTokenizer("laguna", (LINES, QWEN2)),
    PreTokenizer("seed-coder", (SEED_CODER,), notes=(_STACK_NOTE,)),
    PreTokenizer(
        "tekken",
        (TEKKEN,),
        ignore_merges=True,
        notes=(_CASE_NOTE, _MARKS_NOTE, _STACK_NOTE),
    ),
    PreTokenizer(
        "granite-embed-multi-97m",
        (GPT4O,),
        ignore_merges=True,
        notes=(_CASE_NOTE, _STACK_NOTE),
        needs=_NEEDS,
    ),
    PreTokenizer("gpt-4o", (GPT4O,), notes=(_CASE_NOTE, _MARKS_NOTE, _STACK_NOTE)),
    PreTokenizer(
        "minicpm5", (DIGITS_3, MINICPM5), ignore_merges=True, notes=(_STACK_NOTE,)
    ),
    PreTokenizer("kimi-k2", (KIMI,), notes=(_CASE_NOTE, _MARKS_NOTE, _CAMEL_NOTE)),
    PreTokenizer("deepseek-v3", (DIGITS_3, CJK, DEEPSEEK3), notes=(_STACK_NOTE,)),
    PreTokenizer("deepseek-coder", DEEPSEEK_CODER, notes=(_STACK_NOTE, _SPACE_NOTE)),
    PreTokenizer(
        "deepseek-llm",
        (*DEEPSEEK_LLM, DIGIT),
        joins=_two_numerals,
        notes=(_STACK_NOTE, _SPACE_NOTE),
    ),
    PreTokenizer(
        "deepseek-llm", (*DEEPSEEK_LLM, NUMBER), notes=(_STACK_NOTE, _SPACE_NOTE)
    ),
    PreTokenizer(
        "falcon",
        (PUNCTUATION, GPT2, BYTES, NUMBER, "[0-9][0-9][0-9]"),
        joins=_numeral_to_other,
    ),
)

# These match every character, so that "Removed" + invert (keep the matches) is "Isolated".
_COVERING = {GPT2, LLAMA3, QWEN2, QWEN35, TEKKEN, GPT4O}


def find(
    pre_tokenizer: Mapping[str, Any] | None, where: str
) -> tuple[PreTokenizer, ...]:
    """The rows with this ``pre_tokenizer``'s splits.

    Raises CheckpointError, naming the expressions, where llama.cpp has no name for them.
    """
    steps = steps_of(pre_tokenizer, where)
    rows = tuple(row for row in TABLE if row.steps == steps)
    if not rows and (steps.count(BYTES) != 1 or steps[-1] != BYTES):
        raise CheckpointError(
            f"{where}: the pre_tokenizer does not end in its one ByteLevel step, so this is no "
            "byte-level BPE that llama.cpp knows; only such tokenizers can be converted"
        )
    if not rows:
        raise CheckpointError(
            f"{where}: llama.cpp has no pre-tokenizer with the expressions "
            f"{quote(' then '.join(steps[:-1]) or 'none', 400)}; add the row to "
            "ggext/checkpoint/vocabulary/pretokenizers.py once a name of llama.cpp is known to do "
            "the same"
        )
    return rows


def steps_of(pre_tokenizer: Mapping[str, Any] | None, where: str) -> tuple[str, ...]:
    """The split expressions in order, under the spelling that ``TABLE`` has. Raises
    ``CheckpointError`` for a step that llama.cpp has not."""
    return tuple(SAME.get(step, step) for step in _steps(pre_tokenizer or {}, where, 0))


def _steps(node: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
    """The split expressions in order, and ``BYTES`` for the step that turns text into byte
    symbols."""
    kind = get(node, "type", str, where)
    if kind == "Sequence" and depth < 8:
        for child in get(node, "pretokenizers", list, where, []):
            if not isinstance(child, Mapping):
                raise CheckpointError(
                    f"{where}: a pre_tokenizer step is no object; correct it"
                )
            yield from _steps(child, where, depth + 1)
    elif kind == "ByteLevel":
        if get(node, "add_prefix_space", bool, where, True):
            raise CheckpointError(
                f"{where}: ByteLevel has add_prefix_space, which llama.cpp's BPE cannot do"
            )
        if get(node, "use_regex", bool, where, True):
            yield GPT2
        yield BYTES
    elif kind == "Digits":
        yield DIGIT if get(node, "individual_digits", bool, where, False) else NUMBER
    elif (
        kind == "Punctuation"
        and get(node, "behavior", str, where, "Isolated") == "Contiguous"
    ):
        yield PUNCTUATION
    elif kind == "Split":
        yield _split(node, where)
    else:
        raise CheckpointError(
            f"{where}: the pre_tokenizer step {quote(str(kind))} has no equal in llama.cpp; "
            "only ByteLevel, Split, Digits, contiguous Punctuation and Sequence are known"
        )


def _split(node: Mapping[str, Any], where: str) -> str:
    regex = get(get(node, "pattern", dict, where, {}), "Regex", str, where)
    behavior = get(node, "behavior", str, where, "")
    invert = get(node, "invert", bool, where, False)
    isolated = behavior == "Isolated" or (
        behavior == "Removed" and invert and regex in _COVERING
    )
    if regex is None or not isolated:
        raise CheckpointError(
            f"{where}: the pre_tokenizer Split of {quote(repr(node.get('pattern')), 200)} with "
            f"behavior {quote(behavior)} has no equal in llama.cpp, which only isolates "
            "the matches of a Regex"
        )
    return regex
