"""SentencePiece's vocabularies in the form of a tokenizer.json: Llama 2's and Gemma's.

Their BPE runs over text with U+2581 for spaces, and has tokens for single bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, starmap, takewhile
from operator import add

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
from ggext.checkpoint.vocabulary.spm import byte_notes
from ggext.checkpoint.vocabulary.token_source import (
    SPACE,
    Pair,
    TokenSource,
    strip_notes,
)
from ggext.errors import CheckpointError


def sentencepiece_form(
    root: JsonObject, model: JsonObject, table: TokenTable, merges: Sequence[Pair]
) -> TokenSource:
    where = table.where
    if get(model, "ignore_merges", bool, where, False):
        raise CheckpointError(
            f"{where} has byte_fallback and ignore_merges: not in llama.cpp"
        )
    source = TokenSource("llama", table)
    _mark_bytes_and_unknown(model, source)
    of_spaces = _set_spaces(root, source)
    _set_scores(source, merges)
    source.notes += (*byte_notes(table), *of_spaces, *strip_notes(root))
    return source


def merged_form(
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
    of_spaces = _set_spaces(root, source)
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
    source.notes += (*byte_notes(table), *of_spaces, *strip_notes(root))
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


def _set_spaces(root: JsonObject, source: TokenSource) -> list[str]:
    """Find out whether a space is put before the text, and check that spaces become U+2581. Returns
    notes on where llama.cpp puts one and the original does not."""
    where = source.table.where
    steps = _flat(get(root, "normalizer", dict, where), "normalizers", where)
    steps += _flat(get(root, "pre_tokenizer", dict, where), "pretokenizers", where)
    prefix = replaces = False
    notes: list[str] = []
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
            prefix, notes = _metaspace(step, source.table)
        else:
            replaces = False
            break
    if not replaces:
        raise CheckpointError(
            f"{where}: the steps {quote(repr([dict(step) for step in steps]), 300)} before the BPE "
            "are not those of a Llama tokenizer (Prepend and Replace with U+2581, or Metaspace)"
        )
    source.add_space_prefix = prefix
    return notes


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


def _metaspace(step: JsonObject, table: TokenTable) -> tuple[bool, list[str]]:
    where = table.where
    scheme = get(step, "prepend_scheme", str, where)
    if scheme is None:
        scheme = (
            "always" if get(step, "add_prefix_space", bool, where, True) else "never"
        )
    if get(step, "split", bool, where, True):
        inner = [t.text for _, t in table if t.type == NORMAL and SPACE in t.text[1:]]
        if inner:
            raise CheckpointError(
                f"{where}: Metaspace splits words but {len(inner)} tokens (first "
                f"{quote(inner[0])}) cross a space, which llama.cpp would merge: its token ids "
                "would differ"
            )
    if scheme == "never":
        return False, []
    note = (
        f"Metaspace with prepend_scheme {quote(scheme)}: llama.cpp puts a space before a text "
        "that begins with one, and after a special token, also where the original does not"
    )
    return True, [note]


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
    result = {text for text in texts if table.find(text) is None}
    if source.add_space_prefix:
        return result
    for character in {text[0] for text in texts - result if len({*text}) == 1}:
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
        result |= set(runs)
    return result


def _check_cuts(
    texts: Iterable[str], tokens: set[str], pairs: set[Pair], where: str
) -> None:
    for text in texts:
        for cut in range(1, len(text)):
            left = text[:cut]
            right = text[cut:]
            if left in tokens and right in tokens and (left, right) not in pairs:
                raise CheckpointError(
                    f"{where}: llama.cpp would merge {quote(left)} + {quote(right)}, for which "
                    "there is no merge: these are no SentencePiece merges; add the original "
                    "tokenizer.model"
                )
