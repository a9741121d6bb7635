"""RoPE in a GGUF file: the table as llama.cpp computes it, and the recipe that says what was asked
for."""

from __future__ import annotations

from ggext.errors import RopeError
from ggext.gguf.reader import GgufFile
from ggext.gguf.shards import model_parts
from ggext.rope.capabilities import capability_of
from ggext.rope.decode import decode, geometry_of
from ggext.rope.keys import FACTOR_TENSORS
from ggext.rope.recipe import RECIPE_KEY, Recipe, parse_recipe
from ggext.rope.scaling import RopeTable
from ggext.rope.sections import SECTIONS, still_pairs


def effective_table(
    gguf: GgufFile, n_ctx: int | None = None, *, by_ggext: bool = False
) -> RopeTable:
    """The table that llama.cpp computes from a file, in a context of ``n_ctx`` tokens (``None``:
    the file's own).

    ``by_ggext``: in ggext's own contexts, which set what the file keeps for them
    (``context_parameters``). Raises ``RopeError`` where llama.cpp, or ggext, cannot."""
    try:
        return decode(
            gguf.arch_keys(), factor_tensors(gguf), gguf.arch, n_ctx, by_ggext=by_ggext
        )
    except RopeError as error:
        raise RopeError(f"{gguf.path}: {error}") from None


def still_pairs_of(gguf: GgufFile) -> tuple[int, ...]:
    """The pairs that llama.cpp never turns in a text, though the model does: M-RoPE's sections put
    them where a text has no coordinate. Raises ``RopeError`` as ``effective_table`` does."""
    if SECTIONS not in gguf.arch_keys():
        return ()
    geometry = geometry_of(gguf.arch_keys(), gguf.arch)
    if geometry.sections is None:
        return ()
    kind = capability_of(gguf.arch, sectioned=True).sections
    return still_pairs(geometry.sections, geometry.n_rot // 2, kind)


def still_pairs_in_words(gguf: GgufFile) -> str:
    """Why these pairs stand still, and what mends it; empty where all pairs turn."""
    pairs = still_pairs_of(gguf)
    if not pairs:
        return ""
    sections = gguf.arch_keys()[SECTIONS]
    return (
        f"{SECTIONS} {sections} gives pairs {', '.join(map(str, pairs))} a coordinate that is 0 in "
        f"a text: they never turn; ggext convert {gguf.path} --in-place mends it"
    )


def factor_tensors(gguf: GgufFile) -> dict[str, list[float]]:
    """The RoPE factor tensors of a model by name, as ``rope.decode`` takes them, in whichever part
    they are."""
    return {
        name: part.float_tensor(name).tolist()
        for part in model_parts(gguf)
        for name in FACTOR_TENSORS
        if name in part.tensors
    }


def recipe_of(gguf: GgufFile) -> Recipe | None:
    """``None`` where the file has none. Raises ``RopeError`` for one that is malformed."""
    return parse_recipe(gguf.get(RECIPE_KEY)) if RECIPE_KEY in gguf.fields else None
