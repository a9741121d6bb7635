r"""Which ``tokenizer.ggml.pre`` says the same as a tokenizer.json's ``pre_tokenizer``.

llama.cpp holds its own regular expressions, one set a name, compiled in. So the name is found by
what the checkpoint's own pre-tokenizer *does*: its steps are brought to one form (``split``
expressions, then bytes) and looked up in ``TABLE``. Nothing is guessed: an unknown form is an
error.

Each row was compared with llama.cpp (of llama-cpp-python 0.3.36) on thousands of strings by a
tokenizer whose merges cross all borders (tests/test_tokenizer.py), and all but the last three on
each code point up to U+1FFFF in nine surroundings. There, two differences hold for every row:
llama.cpp's character tables are Unicode 15's, so some 4,400 letters and marks that later versions
added are no letters to it; and it does not take U+017F (long s) for an s in "'s". Where its
expression is only nearly the checkpoint's, the row has a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ggext.checkpoint.files import get, quote
from ggext.errors import CheckpointError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")
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
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|" + _SPACES
)

_CASE_NOTE = (
    "llama.cpp's expression takes every non-ASCII letter for both upper and lower case and leaves "
    "combining marks out: words with them may be split elsewhere than in the original"
)
# std::regex recurses once a character: measured, 10,000 letters pass and 30,000 end the process.
_STACK_NOTE = (
    "llama.cpp matches it with std::regex, which overflows the stack and ends the process on a run "
    "of more than about 10,000 letters, signs or spaces without a break"
)


@dataclass(frozen=True)
class PreTokenizer:
    """One name of llama.cpp: the split expressions it stands for, and what goes with the name.

    ``ignore_merges`` is what llama.cpp does under this name: take a word that is a token whole,
    without merging. ``notes`` say on which text llama.cpp's own expression differs.
    """

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False
    notes: tuple[str, ...] = ()


TABLE = (
    PreTokenizer("gpt-2", (GPT2,)),
    PreTokenizer("smollm", (DIGIT, GPT2)),
    PreTokenizer("llama-bpe", (LLAMA3,), ignore_merges=True),
    PreTokenizer("dbrx", (LLAMA3,)),
    PreTokenizer("qwen2", (QWEN2,)),
    PreTokenizer("qwen35", (QWEN35,)),
    PreTokenizer("tekken", (TEKKEN,), ignore_merges=True, notes=(_CASE_NOTE, _STACK_NOTE)),
    PreTokenizer("gpt-4o", (GPT4O,), notes=(_CASE_NOTE, _STACK_NOTE)),
    PreTokenizer("deepseek-v3", (DIGITS_3, CJK, DEEPSEEK3), notes=(_STACK_NOTE,)),
)

# These match every character, so that "Removed" + invert (keep the matches) is "Isolated".
_COVERING = {GPT2, LLAMA3, QWEN2, QWEN35, TEKKEN, GPT4O}


def find(pre_tokenizer: Mapping[str, Any] | None, where: str) -> tuple[PreTokenizer, ...]:
    """The rows with this ``pre_tokenizer``'s splits (they differ in ``ignore_merges`` alone).

    Raises CheckpointError, naming the expressions, where llama.cpp has no name for them.
    """
    steps = list(_steps(pre_tokenizer or {}, where, 0))
    byte_levels = [step for step in steps if step is None]
    if len(byte_levels) != 1 or steps[-1] is not None:
        raise CheckpointError(
            f"{where}: the pre_tokenizer does not end in its one ByteLevel step, so this is no "
            "byte-level BPE that llama.cpp knows; only such tokenizers can be converted"
        )
    splits = tuple(step for step in steps if step is not None)
    rows = tuple(row for row in TABLE if row.splits == splits)
    if not rows:
        raise CheckpointError(
            f"{where}: llama.cpp has no pre-tokenizer with the expressions "
            f"{quote(' then '.join(splits) or 'none', 400)}; add the row to "
            "ggext/checkpoint/pretokenizers.py once a name of llama.cpp is known to do the same"
        )
    return rows


def _steps(node: Mapping[str, Any], where: str, depth: int) -> Iterator[str | None]:
    """The split expressions in order, and None for the step that turns text into byte symbols."""
    kind = get(node, "type", str, where)
    if kind == "Sequence" and depth < 8:
        for child in get(node, "pretokenizers", list, where, []):
            if not isinstance(child, Mapping):
                raise CheckpointError(f"{where}: a pre_tokenizer step is no object; correct it")
            yield from _steps(child, where, depth + 1)
    elif kind == "ByteLevel":
        if get(node, "add_prefix_space", bool, where, True):
            raise CheckpointError(f"{where}: ByteLevel has add_prefix_space, which llama.cpp's BPE cannot do")
        if get(node, "use_regex", bool, where, True):
            yield GPT2
        yield None
    elif kind == "Digits":
        yield DIGIT if get(node, "individual_digits", bool, where, False) else r"\p{N}+"
    elif kind == "Split":
        yield _split(node, where)
    else:
        raise CheckpointError(
            f"{where}: the pre_tokenizer step {quote(str(kind))} has no equal in llama.cpp; "
            "only ByteLevel, Split, Digits and Sequence are known"
        )


def _split(node: Mapping[str, Any], where: str) -> str:
    regex = get(get(node, "pattern", dict, where, {}), "Regex", str, where)
    behavior = get(node, "behavior", str, where, "")
    invert = get(node, "invert", bool, where, False)
    isolated = behavior == "Isolated" or (behavior == "Removed" and invert and regex in _COVERING)
    if regex is None or not isolated:
        raise CheckpointError(
            f"{where}: the pre_tokenizer Split of {quote(repr(node.get('pattern')), 200)} with "
            f"behavior {quote(behavior)} has no equal in llama.cpp, which only isolates "
            "the matches of a Regex"
        )
    return regex
