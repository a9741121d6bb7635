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


def choosing_layers(keys: Mapping[str, Any], layers: int) -> list[bool]:
    """For each of ``layers``, whether it chooses. ``keys``: the architecture's own, without its
    prefix. Raises ValueError for a value that the graph does not run with."""
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
