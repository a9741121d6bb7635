"""RoPE in a GGUF file: the table as llama.cpp computes it, and the recipe that says what was asked
for."""

from __future__ import annotations

from ggext.errors import RopeError
from ggext.gguf.reader import GgufFile
from ggext.gguf.shards import model_parts
from ggext.rope.decode import FACTOR_TENSORS, decode
from ggext.rope.recipe import RECIPE_KEY, Recipe, parse_recipe
from ggext.rope.scaling import RopeTable


def effective_table(
    gguf: GgufFile, n_ctx: int | None = None, *, by_ggext: bool = False
) -> RopeTable:
    """The table that llama.cpp computes from a file, in a context of ``n_ctx`` tokens (``None``:
    the file's own).

    ``by_ggext``: in ggext's own contexts, which set what the file keeps for them
    (``context_parameters``). Raises ``RopeError`` where llama.cpp, or ggext, cannot."""
    try:
        return decode(gguf.arch_keys(), factor_tensors(gguf), gguf.arch, n_ctx, by_ggext=by_ggext)
    except RopeError as error:
        raise RopeError(f"{gguf.path}: {error}") from None


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
