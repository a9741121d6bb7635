"""Another YaRN table in a live context: no file is baked, and nothing is loaded again.

llama.cpp takes no gain for a context, so the parameters are set where they are used: in the ROPE
operations themselves, before they are computed. What a baked file would do is done this way too,
bit for bit where its keys can say it.
"""

from __future__ import annotations

from ggext.errors import RopeError
from ggext.gguf.reader import GgufFile
from ggext.llama_cpp_facts.node_names import layer_of_node
from ggext.rope import methods
from ggext.rope.decode import geometry_of, layer_kinds
from ggext.rope.scaling import RopeScaling
from ggext.runtime import llama
from ggext.runtime.ggml import RopeCall, Tensor, library, rope_of, set_rope


class LiveTable:
    """The table that the scaled layers of a context turn by: the file's own until `use`.

    ``callback`` is for ``SessionOptions.eval_callback`` and must live as long as the context. What
    is cached was turned by the table before: `Session.clear` after each change.
    """

    def __init__(self, header: GgufFile) -> None:
        self._ggml = library()
        self._geometry = geometry_of(header.arch_keys(), header.arch)
        self._layers = layer_kinds(header.arch_keys(), header.arch)
        self._call: RopeCall | None = None
        # What llama.cpp itself gave each operation: it uses a graph of the same shape again.
        self._own: dict[str, RopeCall] = {}
        #: What is in use.
        self.scaling: RopeScaling | None = None
        self._error: BaseException | None = None
        self.callback = llama.lib().ggml_backend_sched_eval_callback(self._see)

    def use(self, scaling: RopeScaling | None) -> None:
        """YaRN with these parameters from the next evaluation on; None: the file's own table.

        Raises RopeError for what llama.cpp's operation has no parameters for.
        """
        self._call = None if scaling is None else self._parameters(scaling)
        self.scaling = scaling

    def check(self) -> None:
        """Raises what went wrong in an evaluation, an interrupt too: ctypes would only print it."""
        error = self._error
        self._error = None
        if error is not None:
            raise error

    def _parameters(self, scaling: RopeScaling) -> RopeCall:
        if scaling.method != "yarn" or scaling.truncate is False:
            raise RopeError(
                f"a live table is YaRN's with whole bounds, not {scaling.method}: bake it with "
                "ggext convert"
            )
        geometry = self._geometry
        factor = scaling.factor or 1.0
        gain = methods.make_table(scaling, geometry).attention_factor
        return RopeCall(
            geometry.n_rot,
            0,
            methods.original_context(scaling, geometry),
            geometry.base,
            1 / factor,
            1.0,
            gain / methods.yarn_gain(factor),  # the kernel multiplies by it on its own
            scaling.beta_fast or methods.YARN_BETA_FAST,
            scaling.beta_slow or methods.YARN_BETA_SLOW,
        )

    def _see(self, address: int, ask: bool, _user_data: object) -> bool:
        """Needs no node's result, so that nothing is computed by itself."""
        if ask and (self._call is not None or self._own):
            try:
                self._change(address)
            except BaseException as error:  # noqa: BLE001 - `check` raises it
                self._error = error
        return not ask

    def _change(self, address: int) -> None:
        node = Tensor.from_address(address)
        if self._ggml.ggml_op_name(node.op) != b"ROPE":
            return
        name = node.name.decode("utf-8", "replace")
        layer = layer_of_node(name)
        if layer < len(self._layers) and self._layers[layer] != "scaled":
            return
        call = self._call or self._own.get(name)
        if call is not None:
            # The first graph that has the operation is as llama.cpp made it.
            self._own.setdefault(name, rope_of(node))
            set_rope(node, call)
