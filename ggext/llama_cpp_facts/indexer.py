"""Which layers of a model choose the tokens that they attend to (``models/glm-dsa.cpp`` and
``models/deepseek32.cpp`` of llama.cpp); the others take those of the layer before. And which models
choose blocks of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Architectures that choose blocks. Without flash attention, or in a cache that several sequences
#: share, llama.cpp has them attend to everything, and says so in its log alone.
IN_BLOCKS = frozenset({"minimax-m3"})
TYPES = "attention.indexer.types"
#: Context from which on a file of glm-dsa without the key is taken for GLM 5.2.
FROM_CONTEXT = 1 << 20


#: The architectures whose tokens attend to chosen ones; those of which a layer may take the choice
#: of the one before.
INDEXED = ("deepseek32", "glm-dsa")
_SHARED = "glm-dsa"


def choosing_layers(arch: str, keys: Mapping[str, Any], layers: int) -> list[bool]:
    """For each of ``layers``, whether it chooses. ``keys``: the architecture's own, without its
    prefix. Raises ValueError for a value that the graph does not run with."""
    if arch != _SHARED:
        return [True] * layers
    given = keys.get(TYPES)
    context = keys.get("context_length")
    if given is None and isinstance(context, int) and context >= FROM_CONTEXT:
        return [i < 2 or (i - 2) % 4 == 0 for i in range(layers)]
    if given is None:
        return [True] * layers
    given = given if isinstance(given, list) else [given] * layers
    if len(given) != layers or not all(isinstance(flag, bool) for flag in given):
        raise ValueError(f"{TYPES} is {given!r:.60}, not a flag for each of {layers}")
    if not given[0]:
        raise ValueError(f"{TYPES} says that the first layer does not choose")
    return given


def unsaid_choice(arch: str, keys: Mapping[str, Any]) -> list[bool] | None:
    """What llama.cpp takes for a file that does not say which layers choose, and by whose context
    it decides; None for other files."""
    layers = keys.get("block_count")
    further = keys.get("nextn_predict_layers", 0)
    whole = all(type(number) is int for number in (layers, further))
    if arch != _SHARED or TYPES in keys or not whole or not isinstance(layers, int):
        return None
    return choosing_layers(arch, keys, max(0, layers - further))


def unsaid_choice_in_words(arch: str, keys: Mapping[str, Any]) -> str:
    """A sentence without its end, nothing where the file says it."""
    choice = unsaid_choice(arch, keys)
    if choice is None:
        return ""
    return (
        f"the file has no {TYPES}, and llama.cpp goes by its context: {sum(choice)} of "
        f"{len(choice)} layers choose the tokens that are attended to, all of them below a context "
        f"of {FROM_CONTEXT:,} and GLM 5.2's from there on; ggext convert writes the key as it is"
    )
