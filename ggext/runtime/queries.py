"""The queries of the tokens that are being evaluated, read from llama.cpp's live graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ggext.errors import ModelError
from ggext.runtime import llama
from ggext.runtime.ggml import Tensor, library, read_tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.rotation import KeyRotation

_QUERY = b"Qcur"  # llama.cpp's name of a layer's queries, a number after it


class QueryWatcher:
    """Keeps each layer's rotated queries and their positions inside `watching`, in the order of the
    layers.

    ``callback`` is for ``SessionOptions.eval_callback`` and must live as long as the context.
    """

    def __init__(self) -> None:
        self._on = False
        self._ggml = library()
        self._seen: list[tuple[NDArray[np.float32], NDArray[np.int32]]] = []
        self._error: BaseException | None = None
        self.callback = llama.lib().ggml_backend_sched_eval_callback(self._see)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sees what is evaluated in this block; what was seen before is forgotten."""
        self._seen = []
        self._error = None
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def take(self, rotation: KeyRotation) -> list[NDArray[np.float32]]:
        """Each layer's queries before rotation, (n_tokens, n_heads, head_dim), of one batch; they
        are forgotten.

        Raises ModelError where the graph has none by that name.
        """
        seen = self._seen
        self._seen = []
        if self._error is not None:
            raise self._error
        if not seen:
            raise ModelError(
                "llama.cpp's graph of this model has no rotated queries by the name that ggext "
                "knows"
            )
        return [rotation.upright_queries(rows, positions) for rows, positions in seen]

    def _see(self, address: int, ask: bool, _user_data: object) -> bool:
        if not self._on:
            return not ask
        try:
            return self._look(address, ask)
        except BaseException as error:  # noqa: BLE001 - `take` raises it; ctypes would only print it
            self._error = error
            return False

    def _look(self, address: int, ask: bool) -> bool:
        import numpy as np

        node = Tensor.from_address(address)
        relevant = (
            node.name.startswith(_QUERY) and self._ggml.ggml_op_name(node.op) == b"ROPE"
        )
        if ask or not relevant:
            return relevant or not ask
        rows = read_tensor(self._ggml, address).astype(np.float32)
        positions = (
            read_tensor(self._ggml, node.src[1]).ravel()[: len(rows)].astype(np.int32)
        )
        self._seen.append((np.ascontiguousarray(rows), positions))
        return True
