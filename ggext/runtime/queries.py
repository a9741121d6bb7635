"""The queries of the tokens that are being evaluated, read from llama.cpp's live graph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ggext.errors import ModelError
from ggext.runtime import llama
from ggext.runtime.ggml import Tensor, library, read_tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.layers import CachedLayers
    from ggext.runtime.rotation import KeyRotation

    #: Queries, (n_tokens, n_heads, head_dim), and the positions that they are rotated by.
    Seen = tuple[NDArray[np.float32], NDArray[np.int32]]

#: llama.cpp's names of a layer's queries on their way, the layer's number at the end.
_QUERY = re.compile(rb"Qcur\w*-(\d+)")


class QueryWatcher:
    """Keeps queries inside `watching`, of each layer that is looked through: as they are rotated,
    or the last of them where nothing rotates.

    ``callback`` is for ``SessionOptions.eval_callback`` and must live as long as the context.
    """

    def __init__(self) -> None:
        self._ggml = library()
        #: Of each layer by its number, whether it rotates; none: nothing is watched.
        self._rotate: dict[int, bool] = {}
        self._seen: dict[int, Seen] = {}
        self._error: BaseException | None = None
        self.callback = llama.lib().ggml_backend_sched_eval_callback(self._see)

    @contextmanager
    def watching(self, layers: CachedLayers) -> Iterator[None]:
        """Sees what is evaluated in this block; what was seen before is forgotten."""
        chosen = (layers.layers[place] for place in layers.looked_through)
        self._seen = {}
        self._error = None
        self._rotate = {layer.number: layer.rotates != "unrotated" for layer in chosen}
        try:
            yield
        finally:
            self._rotate = {}

    def take(self, rotation: KeyRotation) -> list[NDArray[np.float32]]:
        """Queries before rotation, (n_tokens, n_heads, head_dim), of each layer that is looked
        through, of one batch; they are forgotten.

        Raises ModelError where the graph has none by that name.
        """
        seen = self._seen
        self._seen = {}
        if self._error is not None:
            raise self._error
        layers = rotation.layers
        numbers = {
            place: layers.layers[place].number for place in layers.looked_through
        }
        missing = [number for number in numbers.values() if number not in seen]
        if missing:
            raise ModelError(
                f"llama.cpp's graph of this model has no queries of layer {missing[0]} by a name "
                "that ggext knows: in place of a policy that brings passages back take stream"
            )
        return [
            rotation.upright_queries(place, *seen[number])
            for place, number in numbers.items()
        ]

    def _see(self, address: int, ask: bool, _user_data: object) -> bool:
        if not self._rotate:
            return not ask
        try:
            return self._look(address, ask)
        except BaseException as error:  # noqa: BLE001 - `take` raises it; ctypes would only print it
            self._error = error
            return False

    def _look(self, address: int, ask: bool) -> bool:
        import numpy as np

        node = Tensor.from_address(address)
        layer = self._layer_of(node)
        if ask or layer is None:
            return layer is not None or not ask
        rows = read_tensor(self._ggml, address).astype(np.float32)
        positions = np.zeros(len(rows), np.int32)
        if self._rotate[layer]:
            places = read_tensor(self._ggml, node.src[1])
            positions = places.ravel()[: len(rows)].astype(np.int32)
        self._seen[layer] = np.ascontiguousarray(rows), positions
        return True

    def _layer_of(self, node: Tensor) -> int | None:
        """The layer that is looked through whose queries these are; None for any other node."""
        name = _QUERY.fullmatch(node.name)
        layer = int(name[1]) if name else -1
        rotates = self._rotate.get(layer)
        if rotates is None or (rotates and self._ggml.ggml_op_name(node.op) != b"ROPE"):
            return None
        return layer
