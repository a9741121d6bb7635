"""The layers of a model as its cache has them: in which order, how each rotates its keys, and which
of them see the whole context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggext.errors import RopeError
from ggext.gguf.reader import GgufFile
from ggext.llama_cpp_facts.sliding import SHARED_LAYERS, layers_with_windows
from ggext.rope.decode import LayerKind, layer_kinds
from ggext.rope.keys import count_of

if TYPE_CHECKING:
    from ggext.runtime.state import Part


@dataclass(frozen=True)
class CachedLayer:
    """A layer with keys of its own."""

    # Counted from 0.
    number: int
    rotates: LayerKind
    # Whether it attends to a window.
    slides: bool


def windowed_layers(header: GgufFile) -> list[bool]:
    """For each layer, whether it attends to a window; none where that is not known."""
    try:
        count = len(layer_kinds(header.arch_keys(), header.arch))
    except RopeError:
        return []
    return _windowed(header, count)


def _windowed(header: GgufFile, count: int) -> list[bool]:
    return layers_with_windows(header.arch, header.arch_keys(), count)


class CachedLayers:
    """Those of a file, in the order in which llama.cpp writes them: with sliding windows those that
    see everything come first. Raises RopeError."""

    def __init__(self, header: GgufFile) -> None:
        keys = header.arch_keys()
        kinds = layer_kinds(keys, header.arch)
        slides = _windowed(header, len(kinds))
        count = len(kinds) - count_of(keys, "nextn_predict_layers")
        own = max(count - count_of(keys, SHARED_LAYERS), 0)
        layers = [CachedLayer(i, kinds[i], slides[i]) for i in range(own)]
        self.layers = tuple(sorted(layers, key=lambda layer: layer.slides))

    @property
    def whole(self) -> range:
        """Places, in that order, of the layers that see everything; of all where none does."""
        count = sum(not layer.slides for layer in self.layers)
        return range(count or len(self.layers))

    def places(self, part: Part) -> slice:
        """Those of the layers that a block of this part has."""
        count = sum(not layer.slides for layer in self.layers)
        return {
            "all": slice(None),
            "whole": slice(count),
            "sliding": slice(count, None),
        }[part]

    @property
    def looked_through(self) -> range:
        """Places of the layers by which a question finds passages: of those that see everything
        the latter half, and of many every second."""
        count = len(self.whole)
        step = 2 if count == len(self.layers) else 1
        return range(count // 2, count, step)
