"""A context for measuring: tokens at any positions, whole-cache shifts, every ROPE node seen."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ggext.errors import ModelError
from ggext.llama_cpp_facts.indexer import IN_BLOCKS
from ggext.llama_cpp_facts.sliding import SHARED_LAYERS, sliding_layers, window_of
from ggext.runtime import apart, llama
from ggext.runtime.closing import Closing
from ggext.runtime.context import SessionOptions, open_context, plan_context
from ggext.runtime.model import Model
from ggext.runtime.rope_watcher import RopeNode, RopeWatcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


#: Cells that serve where positions, not the length of the text, are what is looked at.
CELLS = 256


class Probe(Closing):
    """A context of ``n_ctx`` cells over a model, keys and values float32; ``sink`` gets the ROPE
    nodes.

    A position may be larger than the number of cells: far positions need no long prefill.
    """

    def __init__(
        self, model: Model, n_ctx: int, sink: Callable[[RopeNode], None]
    ) -> None:
        self._lib = llama.lib()
        self._model = model
        self._watcher = RopeWatcher(sink)
        self._flag, abort = llama.abort_flag()
        # 16-bit keys would round what is measured; flash attention is a kernel of its own
        options = SessionOptions(
            n_ctx=n_ctx,
            n_batch=min(n_ctx, CELLS),
            kv_type="f32",
            flash_attention=model.architecture in IN_BLOCKS,
            eval_callback=self._watcher.callback,
            swa="full",  # positions come in any order
        )
        plan = plan_context(model, options)
        whole = plan.regimes[-1]
        self._context = open_context(
            model, options, plan, whole, (abort, ctypes.addressof(self._flag))
        )
        self._memory = self._lib.llama_get_memory(self._context)

    def close(self) -> None:
        """Frees the context; further calls do nothing."""
        context = self._context
        self._context = None
        if context:
            self._lib.llama_free(context)

    def clear(self) -> None:
        """Empties the cache."""
        self._lib.llama_memory_clear(self._memory, True)

    @property
    def can_shift(self) -> bool:
        """Whether llama.cpp can move cached keys of this model to other positions. A model with a
        window has two caches, and one without layers ends the process when it is moved."""
        header = self._model.header
        keys = header.arch_keys()
        layers = keys["block_count"]
        if window_of(header.arch, keys, layers):
            own = layers - int(keys.get(SHARED_LAYERS, 0))
            if len(set(sliding_layers(header.arch, keys, layers)[:own])) < 2:
                return False
        return bool(self._lib.llama_memory_can_shift(self._memory))

    def shift(self, distance: int) -> None:
        """Marks all cached keys to move by ``distance`` tokens; the next `decode` does it."""
        if not self.can_shift:  # llama.cpp aborts the process
            raise ModelError(
                f"llama.cpp cannot shift the cache of this {self._model.architecture} model"
            )
        self._lib.llama_memory_seq_add(self._memory, 0, 0, -1, distance)

    def _stop(self) -> None:
        """Ends a running `decode` within a node of the graph; nothing is computed after that."""
        self._flag[0] = b"\1"

    def decode(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """Appends tokens at the positions from ``start`` on; the logits after each, (n_tokens,
        n_vocab).

        ``start`` is one after the last position in the cache, or anything in an empty one. Raises
        ModelError.
        """
        import numpy as np

        count = len(tokens)
        batch = self._lib.llama_batch()
        sequence = ctypes.pointer(ctypes.c_int32(0))
        batch.n_tokens = count
        batch.token = (ctypes.c_int32 * count)(*tokens)
        batch.pos = (ctypes.c_int32 * count)(*range(start, start + count))
        batch.n_seq_id = (ctypes.c_int32 * count)(*[1] * count)
        batch.seq_id = (ctypes.POINTER(ctypes.c_int32) * count)(*[sequence] * count)
        batch.logits = (ctypes.c_int8 * count)(*[1] * count)
        llama.clear_log()
        status = apart.run(
            lambda: self._lib.llama_decode(self._context, batch), stop=self._stop
        )
        self._watcher.check()
        if status != 0:
            raise llama.failure(
                f"{count} tokens at position {start} cannot be evaluated"
            )
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (count, self._model.n_vocab)).copy()
