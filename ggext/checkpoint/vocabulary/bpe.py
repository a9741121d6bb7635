"""BPE vocabularies from a ``tokenizer.json``: byte-level ones, and Llama 2's SentencePiece form.

llama.cpp has two tokenizers for the two: "gpt2" merges by the rank of a pair within words that a
pre-tokenizer cut; "llama" merges, over the whole text, whichever two pieces form the token with
the highest score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, starmap
from operator import add

from ggext.checkpoint.files import (
    NORMAL,
    JsonObject,
    TokenTable,
    get,
    quote,
)
from ggext.checkpoint.vocabulary import pretokenizers
from ggext.checkpoint.vocabulary.byte_level import SYMBOLS
from ggext.checkpoint.vocabulary.sentencepiece_form import (
    merged_form,
    sentencepiece_form,
)
from ggext.checkpoint.vocabulary.token_source import (
    Pair,
    TokenSource,
    merge,
    strip_notes,
)
from ggext.errors import CheckpointError


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
        return merged_form(root, model, table, merges)
    if table.escapes_spaces:
        return sentencepiece_form(root, model, table, merges)
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
            node = {}
            kind = "NFC" if children else None
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
