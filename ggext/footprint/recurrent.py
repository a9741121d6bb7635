"""The graph of layers that keep a state in place of their tokens (``models/delta-net-base.cpp``,
``models/lfm2.cpp`` and ``models/mamba-base.cpp`` of llama.cpp, with its fused delta net)."""

from __future__ import annotations

from ggext.footprint.allocator import Tensor
from ggext.footprint.architecture import Layer
from ggext.footprint.nodes import Nodes


class Recurrent(Nodes):
    """Builds those layers; attention and the rest are ``graph``'s."""

    def convolution(self, at: str, layer: Layer, x: Tensor) -> Tensor:
        width = self.arch.width
        parts = self.matrix(x, f"{at}shortconv.in_proj")
        first, gate, last = (self.view(parts, (width, self.n)) for _ in range(3))
        mixed = self._convolved(layer, self.op((width, self.n), first, last), width)
        return self.matrix(self.same(mixed, gate), f"{at}shortconv.out_proj")

    def delta_net(self, at: str, layer: Layer, x: Tensor) -> Tensor:
        keys = self.arch.keys
        n_state = keys["ssm.state_size"]
        heads = keys["ssm.time_step_rank"]
        n_keys = keys["ssm.group_count"]
        inner = keys["ssm.inner_size"]
        qkv, gate = self._projections(at, x, inner, n_keys * n_state)
        beta, decay = self._beta_and_decay(at, x, heads)
        channels = inner + 2 * n_keys * n_state
        mixed = self.same(self._convolved(layer, qkv, channels))
        state = self._state(layer.state)
        q, k = (
            self._normed(self.view(mixed, (n_state, n_keys, self.n))) for _ in range(2)
        )
        if self.arch.name == "qwen3next" and heads != n_keys:
            q, k = (self.op((n_state, heads, self.n), t) for t in (q, k))
        v = self.view(mixed, (n_state, heads, self.n))
        out = self.op((inner, self.n + n_state), q, k, v, decay, beta, state)
        self._keep(self.view(out, (layer.state,)))
        x = self.norm(self.view(out, (n_state, heads, self.n)), f"{at}ssm_norm")
        x = self.same(x, self.same(self.view(gate, (n_state, heads, self.n))))
        return self.matrix(self.view(x, (inner, self.n)), f"{at}ssm_out")

    def mamba2(self, at: str, layer: Layer, x: Tensor) -> Tensor:
        heads = self.arch.keys["ssm.time_step_rank"]
        inner = self.arch.keys["ssm.inner_size"]
        channels = self.arch.rows(f"{at}ssm_in.weight") - inner - heads
        parts = self.matrix(x, f"{at}ssm_in")
        gate, time = (self.view(parts, (size, self.n)) for size in (inner, heads))
        mixed = self._convolved(layer, self.view(parts, (channels, self.n)), channels)
        mixed = self.same(self.same(mixed))
        steps = self.same(self.op((heads, self.n), time))
        values = self.view(mixed, (inner, self.n))
        out = self.op((inner * self.n + layer.state,), values, steps)
        self._keep(self.view(out, (layer.state,)))
        skipped = self.op((inner, self.n), values)
        x = self.same(self.view(out, (inner, self.n), whole=True), skipped)
        x = self.op((inner, self.n), self.op((inner, self.n), gate), x)
        return self.matrix(self.norm(x, f"{at}ssm_norm"), f"{at}ssm_out")

    def _projections(
        self, at: str, x: Tensor, inner: int, n_each: int
    ) -> tuple[Tensor, Tensor]:
        """Queries, keys and values, and the gates."""
        if not self.arch.has(f"{at}ssm_in.weight"):
            return self.matrix(x, f"{at}attn_qkv"), self.matrix(x, f"{at}attn_gate")
        fused = self.matrix(x, f"{at}ssm_in")
        q, k, v, gate = (
            self.op((size, self.n), fused) for size in (n_each, n_each, inner, inner)
        )
        qk = self.op((2 * n_each, self.n), q, k)
        return self.op((2 * n_each + inner, self.n), qk, v), gate

    def _beta_and_decay(self, at: str, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        if self.arch.has(f"{at}ssm_ba.weight"):
            both = self.matrix(x, f"{at}ssm_ba")
            beta, alpha = (self.op((heads, self.n), both) for _ in range(2))
        else:
            beta, alpha = (
                self.matrix(x, f"{at}ssm_{name}") for name in ("beta", "alpha")
            )
        return self.same(beta), self.same(self.same(self.same(alpha)))

    def _convolved(self, layer: Layer, x: Tensor, channels: int) -> Tensor:
        """The convolution over the tokens before and these, the last of which are kept."""
        before = self._state(layer.convolved)
        joined = self.op((layer.convolved // channels + self.n, channels), before, x)
        self._keep(self.view(joined, (layer.convolved,)))
        return self.op((channels, self.n), joined)

    def _normed(self, x: Tensor) -> Tensor:
        return self.same(self.same(x))

    def _state(self, size: int) -> Tensor:
        """A state, read out of the memory of states."""
        return self.graph.expand(self.op((size,), Tensor((1,))))

    def _keep(self, state: Tensor) -> None:
        self.graph.expand(Tensor((1,), (state,), stored=True))
