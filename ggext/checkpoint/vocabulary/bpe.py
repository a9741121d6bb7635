"""BPE vocabularies from a ``tokenizer.json``: byte-level ones, and Llama 2's SentencePiece form.

llama.cpp has two tokenizers for the two: "gpt2" merges by the rank of a pair within words that a
pre-tokenizer cut; "llama" merges, over the whole text, whichever two pieces form the token with
the highest score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, pairwise, starmap, takewhile
from operator import add
from typing import Literal

from ggext.checkpoint.files import (
    ADDED_SCORE,
    BYTE,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    JsonObject,
    TokenTable,
    get,
    quote,
)
from ggext.checkpoint.vocabulary import pretokenizers
from ggext.checkpoint.vocabulary.byte_level import SYMBOLS
from ggext.checkpoint.vocabulary.spm import byte_notes
from ggext.errors import CheckpointError

SPACE = "\u2581"
Pair = tuple[str, str]


@dataclass
class TokenSource:
    """A vocabulary as its main file states it, before special tokens, padding and templates."""

    model: Literal["llama", "gpt2", "gemma4"]
    table: TokenTable
    pre: str = "default"
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    roles: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_tokenizer_json(
    root: JsonObject, where: str, *, by_rank: bool = False
) -> TokenSource:
    """Read a parsed tokenizer.json. ``by_rank``: SentencePiece's form keeps its merges, which
    llama.cpp's "gemma4" follows. Raises CheckpointError where llama.cpp cannot do the same."""
    model = get(root, "model", dict, where, {})
    kind = get(model, "type", str, where, "BPE")
    if kind != "BPE":
        raise CheckpointError(
            f"{where} is a {quote(kind)} tokenizer; only BPE tokenizers (and SentencePiece BPE "
            "models) can be converted for llama.cpp"
        )
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if get(model, affix, str, where, ""):
            raise CheckpointError(
                f"{where} has {affix} {quote(model[affix])}: not in llama.cpp's BPE"
            )
    table = TokenTable(where, get(model, "byte_fallback", bool, where, False))
    vocab = _read_vocab(model, table)
    merges = _read_merges(model, vocab, where)
    add_tokens(root, table, where)
    if table.escapes_spaces and by_rank:
        return _merged_form(root, model, table, merges)
    if table.escapes_spaces:
        return _sentencepiece_form(root, model, table, merges)
    return _byte_level(root, model, table, merges)


def _read_vocab(model: JsonObject, table: TokenTable) -> dict[str, int]:
    vocab = get(model, "vocab", dict, table.where, {})
    for text, number in vocab.items():
        before = len(table.tokens)
        table.put(number, text, NORMAL)
        if len(table.tokens) == before:
            raise CheckpointError(
                f"{table.where}: the token {quote(text)} has the id {number}, which another token "
                "has too; correct the file"
            )
    if not vocab:
        raise CheckpointError(
            f"{table.where} has an empty vocabulary; download the checkpoint again"
        )
    return vocab


def _read_merges(model: JsonObject, vocab: Mapping[str, int], where: str) -> list[Pair]:
    """The merges in order of rank. A pair listed twice has its last rank, as in `tokenizers`."""
    items = get(model, "merges", list, where, [])
    try:
        pairs = [
            (left, right)
            for left, right in (
                i.split(" ") if isinstance(i, str) else i for i in items
            )
        ]
        known = all(map(vocab.__contains__, chain.from_iterable(pairs)))
        known = known and all(map(vocab.__contains__, starmap(add, pairs)))
    except (TypeError, ValueError):
        known = False
    if not known:
        raise next(
            filter(
                None,
                (
                    _merge_error(rank, item, vocab, where)
                    for rank, item in enumerate(items)
                ),
            )
        )
    ranks = dict(zip(pairs, range(len(pairs)), strict=True))
    return pairs if len(ranks) == len(pairs) else sorted(ranks, key=ranks.__getitem__)


def _merge_error(
    rank: int, item: object, vocab: Mapping[str, int], where: str
) -> CheckpointError | None:
    pair = item.split(" ") if isinstance(item, str) else item
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(isinstance(part, str) and part for part in pair)
    ):
        return CheckpointError(
            f"{where}: merge {rank} is {quote(repr(item))}, expected two tokens; correct it"
        )
    left, right = pair
    missing = next(
        (part for part in (left, right, left + right) if part not in vocab), None
    )
    if missing is None:
        return None
    return CheckpointError(
        f"{where}: merge {rank} ({quote(left)} + {quote(right)}) names the token {quote(missing)}, "
        "which is not in the "
        "vocabulary; correct the file"
    )


def add_tokens(root: JsonObject, table: TokenTable, where: str) -> None:
    """Put the ``added_tokens`` of a parsed tokenizer.json into the table."""
    for item in get(root, "added_tokens", list, where, []):
        if not isinstance(item, dict):
            raise CheckpointError(
                f"{where}: an added token is no object; correct the file"
            )
        table.put_added(item.get("id"), item)


def strip_notes(root: JsonObject) -> list[str]:
    """What llama.cpp cannot say of an added token: that it takes the spaces around it along."""
    names = [
        item["content"]
        for item in root.get("added_tokens") or ()
        if any(item.get(flag) is True for flag in ("lstrip", "rstrip", "single_word"))
    ]
    if not names:
        return []
    note = (
        f"{len(names)} added tokens (first {quote(names[0])}) have lstrip, rstrip or single_word, "
        "which a GGUF file cannot say: spaces next to them in a text stay tokens"
    )
    return [note]


# byte-level BPE ---------------------------------------------------------------------------------


def _byte_level(
    root: JsonObject, model: JsonObject, table: TokenTable, merges: Sequence[Pair]
) -> TokenSource:
    where = table.where
    notes = _byte_level_normalizer(get(root, "normalizer", dict, where), where)
    rows = pretokenizers.find(get(root, "pre_tokenizer", dict, where), where)
    row = _choose(rows, get(model, "ignore_merges", bool, where, False), table, merges)
    for left, right in merges:
        if " " in left + right:
            raise CheckpointError(
                f"{where}: the merge {quote(left)} + {quote(right)} contains a space, which is no "
                "symbol of byte-level BPE; correct the file"
            )
    notes += [
        f"pre-tokenizer {row.name}: {note}" for note in (*row.notes, row.needs) if note
    ]
    in_text = SYMBOLS[:0xC0] + SYMBOLS[0xC2:0xF5]  # the other bytes are in no UTF-8
    missing = [symbol for symbol in in_text if table.find(symbol) is None]
    if missing and model.get("unk_token") is not None:
        notes.append(
            f"{len(missing)} bytes have no token: llama.cpp drops them, where the original gives "
            "the unknown token"
        )
    source = TokenSource(
        "gpt2", table, row.name, [f"{a} {b}" for a, b in merges], notes=notes
    )
    source.notes += strip_notes(root)
    return source


def _byte_level_normalizer(node: JsonObject | None, where: str) -> list[str]:
    """The notes of a normalizer: none, or NFC, which llama.cpp does not do."""
    if not node:
        return []
    kind = get(node, "type", str, where)
    if kind == "Sequence":
        children = get(node, "normalizers", list, where, [])
        if all(
            isinstance(child, dict) and child.get("type") == "NFC" for child in children
        ):
            node, kind = {}, "NFC" if children else None
    if kind is None:
        return []
    if kind != "NFC":
        raise CheckpointError(
            f"{where}: the normalizer {quote(repr(dict(node)), 200)} has no equal in llama.cpp's "
            "byte-level BPE, which takes the text as it is"
        )
    return [
        "the tokenizer turns text into NFC, llama.cpp does not: text in another form differs"
    ]


def _choose(
    rows: Sequence[pretokenizers.PreTokenizer],
    ignore_merges: bool,
    table: TokenTable,
    merges: Sequence[Pair],
) -> pretokenizers.PreTokenizer:
    """The row with the fewest known differences that treats whole words as the checkpoint does.

    Where llama.cpp has the expressions only with the other ``ignore_merges``, the two are the same
    if every token can be reached by merges, so that is checked.
    """
    for row in rows:
        _check_joins(row, merges, table.where)
    unreachable: list[str] = []
    for row in sorted(
        rows, key=lambda row: (len(row.notes), row.ignore_merges != ignore_merges)
    ):
        if row.ignore_merges == ignore_merges:
            return row
        unreachable = _unreachable(table, merges)
        if not unreachable:
            return row
    raise CheckpointError(
        f"{table.where} has ignore_merges={str(ignore_merges).lower()} and {len(unreachable)} "
        "tokens that merges "
        f"cannot form (first {quote(unreachable[0])}), but llama.cpp's pre-tokenizer "
        f"{rows[0].name} does the "
        "opposite: its token ids would differ"
    )


def _check_joins(
    row: pretokenizers.PreTokenizer, merges: Sequence[Pair], where: str
) -> None:
    joined = next(
        (pair for pair in merges if row.joins is not None and row.joins(*pair)), None
    )
    if joined is not None:
        raise CheckpointError(
            f"{where}: its pre_tokenizer cuts numerals off and llama.cpp's {row.name} does not, "
            "which is the same only "
            f"without merges such as {quote(joined[0])} + {quote(joined[1])}: its token ids would "
            "differ"
        )


def _unreachable(table: TokenTable, merges: Sequence[Pair]) -> list[str]:
    """The normal tokens that merging their own symbols does not give."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    texts = [token.text for _, token in table if token.type == NORMAL]
    return [text for text in texts if len(merge(text, ranks)) != 1]


def merge(word: str, ranks: Mapping[Pair, int]) -> list[str]:
    """Byte-pair encoding of one word: the pair of lowest rank first, the leftmost of equals."""
    symbols = list(word)
    never = len(ranks)
    found = [ranks.get(pair, never) for pair in pairwise(symbols)]
    while found and (lowest := min(found)) < never:
        at = found.index(lowest)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        del found[at]
        for i in (at - 1, at):
            if 0 <= i < len(found):
                found[i] = ranks.get((symbols[i], symbols[i + 1]), never)
    return symbols


# Llama 2's form: BPE over text with U+2581 for spaces, and byte tokens ---------------------------


def _sentencepiece_form(
    root: JsonObject, model: JsonObject, table: TokenTable, merges: Sequence[Pair]
) -> TokenSource:
    where = table.where
    if get(model, "ignore_merges", bool, where, False):
        raise CheckpointError(
            f"{where} has byte_fallback and ignore_merges: not in llama.cpp"
        )
    source = TokenSource("llama", table)
    _mark_bytes_and_unknown(model, source)
    source.notes += byte_notes(table)
    _set_spaces(root, source)
    _set_scores(source, merges)
    source.notes += strip_notes(root)
    return source


def _merged_form(
    root: JsonObject, model: JsonObject, table: TokenTable, merges: Sequence[Pair]
) -> TokenSource:
    """Gemma 4's: merges by rank over each line, and over each run of line breaks."""
    where = table.where
    if get(model, "ignore_merges", bool, where, False):
        raise CheckpointError(
            f"{where} has byte_fallback and ignore_merges: not in llama.cpp"
        )
    source = TokenSource("gemma4", table, "gemma4")
    _mark_bytes_and_unknown(model, source)
    source.notes += byte_notes(table)
    _set_spaces(root, source)
    if source.add_space_prefix:
        raise CheckpointError(
            f"{where} puts a space before a text, which llama.cpp's tokenizer gemma4 does not"
        )
    across = next(
        (left + right for left, right in merges if _crosses_lines(left + right)), None
    )
    if across is not None:
        raise CheckpointError(
            f"{where}: the token {quote(across)} crosses the end of a line, at which llama.cpp's "
            "tokenizer gemma4 cuts: its token ids would differ"
        )
    source.merges = [f"{left} {right}" for left, right in merges]
    source.notes += strip_notes(root)
    return source


def _crosses_lines(text: str) -> bool:
    return "\n" in text and text.strip("\n") != ""


def _mark_bytes_and_unknown(model: JsonObject, source: TokenSource) -> None:
    for byte in range(256):
        number = source.table.find(f"<0x{byte:02X}>")
        if number is not None:
            source.table.tokens[number].type = BYTE
    unknown = get(model, "unk_token", str, source.table.where)
    number = source.table.find(unknown) if unknown else None
    if number is not None:
        source.table.tokens[number].type = UNKNOWN
        source.roles["unknown"] = number


def _set_spaces(root: JsonObject, source: TokenSource) -> None:
    """Find out whether a space is put before the text, and check that spaces become U+2581."""
    where = source.table.where
    steps = _flat(get(root, "normalizer", dict, where), "normalizers", where)
    steps += _flat(get(root, "pre_tokenizer", dict, where), "pretokenizers", where)
    prefix = replaces = False
    for step in steps:
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == SPACE and not replaces:
            prefix = True
        elif kind == "Replace" and step.get("content") == SPACE and not replaces:
            replaces = step.get("pattern") == {"String": " "}
        elif kind == "Split" and step.get("pattern") == {"String": " "} and replaces:
            continue  # Gemma's: no space is left to split at
        elif (
            kind == "Metaspace" and step.get("replacement") == SPACE and len(steps) == 1
        ):
            replaces = True
            prefix = _metaspace(step, source)
        else:
            replaces = False
            break
    if not replaces:
        raise CheckpointError(
            f"{where}: the steps {quote(repr([dict(step) for step in steps]), 300)} before the BPE "
            "are not those of a Llama tokenizer (Prepend and Replace with U+2581, or Metaspace)"
        )
    source.add_space_prefix = prefix


def _flat(node: JsonObject | None, children: str, where: str) -> list[JsonObject]:
    if not node:
        return []
    if get(node, "type", str, where) != "Sequence":
        return [node]
    items = get(node, children, list, where, [])
    if not all(isinstance(item, dict) for item in items):
        raise CheckpointError(
            f"{where}: a step in {children} is no object; correct the file"
        )
    return items


def _metaspace(step: JsonObject, source: TokenSource) -> bool:
    where = source.table.where
    scheme = get(step, "prepend_scheme", str, where)
    if scheme is None:
        scheme = (
            "always" if get(step, "add_prefix_space", bool, where, True) else "never"
        )
    if get(step, "split", bool, where, True):
        inner = [
            t.text for _, t in source.table if t.type == NORMAL and SPACE in t.text[1:]
        ]
        if inner:
            raise CheckpointError(
                f"{where}: Metaspace splits words but {len(inner)} tokens (first "
                f"{quote(inner[0])}) cross a space, which llama.cpp would merge: its token ids "
                "would differ"
            )
    if scheme != "never":
        source.notes.append(
            f"Metaspace with prepend_scheme {quote(scheme)}: llama.cpp puts a space before a text "
            "that begins with one, and after a special token, also where the original does not"
        )
    return scheme != "never"


def _set_scores(source: TokenSource, merges: Sequence[Pair]) -> None:
    """Scores that make llama.cpp's merging by score the same as merging by rank.

    A token's score is minus its place in the order of merges. The two agree when the merges of
    a token (one for each way to cut it into two tokens) follow each other, and when no two tokens
    can meet that form a token without a merge. Both are checked.
    """
    table = source.table
    texts = list(starmap(add, merges))
    order = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    apart = {
        text
        for text, places in Counter(text for text, _ in groupby(texts)).items()
        if places > 1
    }
    apart -= _cut_off(source, merges, apart)
    if apart:
        raise CheckpointError(
            f"{table.where}: the merges of the token {quote(min(apart))} are not next to each "
            "other, "
            "so no SentencePiece scores say the same; add the original tokenizer.model"
        )
    pairs = set(merges)
    mergeable = {token.text for _, token in table if token.type in (NORMAL, UNKNOWN)}
    for _, token in table:
        if token.type == NORMAL:
            token.score = -float(order.get(token.text, len(order)))
    _check_cuts(
        (token.text for _, token in table if token.type == NORMAL),
        mergeable,
        pairs,
        table.where,
    )


def _cut_off(source: TokenSource, merges: Sequence[Pair], texts: set[str]) -> set[str]:
    """Those of ``texts`` that need no scores, because llama.cpp cuts them off as user-defined
    tokens before it merges.

    Some are user-defined already. Runs of one character (Gemma's line breaks, tabs and spaces)
    become so where their merges go before all others with this character, the longer run before the
    shorter: merging then takes the longest run from the left, as cutting off does.
    """
    table = source.table
    found = {text for text in texts if table.find(text) is None}
    if source.add_space_prefix:
        return found
    for character in {text[0] for text in texts - found if len({*text}) == 1}:
        own = dict.fromkeys(
            pair for pair in merges if character in pair[0] or character in pair[1]
        )
        runs = dict.fromkeys(
            takewhile({character}.issuperset, (left + right for left, right in own))
        )
        longest = max(map(len, runs), default=0)
        if list(runs) != [character * length for length in range(longest, 1, -1)]:
            continue
        if any((run[1:], character) not in own for run in runs):
            continue
        for run in runs:
            table.put(
                table.find(run), run.replace(SPACE, " "), USER_DEFINED, ADDED_SCORE
            )
        found |= set(runs)
    return found


def _check_cuts(
    texts: Iterable[str], tokens: set[str], pairs: set[Pair], where: str
) -> None:
    for text in texts:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in tokens and right in tokens and (left, right) not in pairs:
                raise CheckpointError(
                    f"{where}: llama.cpp would merge {quote(left)} + {quote(right)}, for which "
                    "there is no merge: these are no SentencePiece merges; add the original "
                    "tokenizer.model"
                )
