"""What the name of an operation in llama.cpp's graph says of it (``llm_graph_context::cb``)."""

from __future__ import annotations

import re

_LAYER = re.compile(r"-(\d+)(?: \(.*)?$")


def is_of_indexer(name: str) -> bool:
    """Whether the operation belongs to what chooses the tokens to attend to."""
    return name.startswith("indexer_")


def layer_of_node(name: str) -> int:
    """The layer that llama.cpp's name for an operation ends in; 0 where it has none."""
    number = _LAYER.search(name)
    return int(number[1]) if number else 0
