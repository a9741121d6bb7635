"""The ROPE nodes of a live graph: what llama.cpp gave each, and what it made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime import llama
from ggext.runtime.ggml import RopeCall, Tensor, call_of, library, read_tensor, rope_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


#: Place among a ROPE node's parameters of its first rotated dimension (ggml_rope_set_offset).
_OFFSET = 15


#: The operation that turns the other way: what goes in is what turning its result gives.
_BACK = b"ROPE_BACK"


@dataclass(frozen=True)
class RopeNode:
    """A ROPE node that was computed. Of one that turns back, ``before`` is its result."""

    name: str
    source: str
    call: RopeCall
    # For a context shift the distance of each cache cell.
    positions: NDArray[np.int64]
    # (n_positions, n_heads, dimensions), from the first rotated dimension of a head on; where
    # attention is latent the last ones rotate.
    before: NDArray[np.float32]
    # Of the same shape.
    after: NDArray[np.float32]


class RopeWatcher:
    """Gives every ROPE node of the graphs that a context computes to ``sink``, in the order of
    computing.

    ``callback`` is for ``SessionOptions.eval_callback`` and must live as long as the context. It
    asks for every node, so each is computed by itself: an operation's input may lie where its
    output will be written, and a backend may fuse it with others. After a decode call ``check``.
    """

    def __init__(self, sink: Callable[[RopeNode], None]) -> None:
        self._ggml = library()
        self._sink = sink
        self._before: tuple[int, NDArray[Any]] | None = None
        self.error: BaseException | None = None
        self.callback = llama.lib().ggml_backend_sched_eval_callback(self._see)

    def check(self) -> None:
        """Raises what went wrong inside the callback."""
        error = self.error
        self.error = None
        if error is not None:
            raise error

    def _see(self, address: int, ask: bool, _user_data: object) -> bool:
        if self.error is not None:
            return False
        try:
            self._look(address, ask)
        except BaseException as error:  # noqa: BLE001 - `check` raises it; ctypes would only print it
            self.error = error
        return self.error is None

    def _look(self, address: int, ask: bool) -> None:
        node = Tensor.from_address(address)
        if self._ggml.ggml_op_name(node.op) not in (b"ROPE", _BACK):
            return
        if ask:
            self._before = address, read_tensor(self._ggml, node.src[0])
            return
        if self._before is None or self._before[0] != address:
            raise ModelError("llama.cpp computed a ROPE node without asking first")
        before = self._before[1]
        self._before = None
        after = read_tensor(self._ggml, address)
        if self._ggml.ggml_op_name(node.op) == _BACK:
            before, after = after, before
        self._sink(self._node(node, before, after))

    def _node(
        self, node: Tensor, before: NDArray[Any], after: NDArray[Any]
    ) -> RopeNode:
        import numpy as np

        source = Tensor.from_address(node.src[0])
        positions = read_tensor(self._ggml, node.src[1]).ravel().astype(np.int64)
        factors = (
            tuple(read_tensor(self._ggml, node.src[2]).ravel().tolist())
            if node.src[2]
            else None
        )
        if factors is not None:  # there may be more, for layers that rotate more
            factors = factors[: max(0, rope_of(node).n_dims) // 2]
        name, origin = (t.name.decode("utf-8", "replace") for t in (node, source))
        call = call_of(node, factors)
        first = node.op_params[_OFFSET]
        rotated_fit = first >= 0 and 0 < call.n_dims <= after.shape[-1] - first
        if (
            before.shape != after.shape
            or len(positions) < len(after)
            or not rotated_fit
        ):
            raise ModelError(
                f"llama.cpp's ROPE node {name!r} has shapes that contradict each other"
            )
        rows = (
            before[..., first:].astype(np.float32),
            after[..., first:].astype(np.float32),
        )
        return RopeNode(name, origin, call, positions[: len(after)], *rows)
