"""The graph of feed-forward parts and experts, and of Gemma 4's embeddings of layers."""

from __future__ import annotations

from ggext.errors import GgufError
from ggext.footprint.allocator import Tensor
from ggext.footprint.nodes import Nodes


class FeedForward(Nodes):
    """Builds what stands after attention."""

    # of all layers, where each gets an embedding of its own
    layer_inputs: Tensor | None = None

    def make_layer_inputs(self, embedded: Tensor) -> None:
        """``embedded``: the tokens' embeddings."""
        if not self.arch.has("per_layer_token_embd.weight"):
            return
        layers = len(self.arch.layers)
        each = self.arch.keys["embedding_length_per_layer_input"]
        shape = (each, layers, self.n)
        chosen = self.op((each * layers, self.n), Tensor((self.n,)))
        chosen = self.graph.expand(self.same(self.view(chosen, shape, whole=True)))
        made = self.same(self.matrix(embedded, "per_layer_model_proj"))
        made = self.norm(self.view(made, shape, whole=True), "per_layer_proj_norm")
        self.layer_inputs = self.op(
            (each, self.n, layers), self.same(self.same(made, chosen))
        )

    def with_layer_input(self, at: str, x: Tensor) -> Tensor:
        if self.layer_inputs is not None:
            gate = self.same(self.matrix(x, f"{at}inp_gate"))
            part = self.view(self.layer_inputs, gate.shape)
            added = self.matrix(self.same(gate, part), f"{at}proj")
            x = self.same(x, self.norm(added, f"{at}post_norm"))
        return self.same(x) if self.arch.has(f"{at}layer_output_scale.weight") else x

    def _beside_experts(self, at: str, x: Tensor) -> Tensor:
        """Gemma 4's feed-forward part and its experts, each with norms of its own."""
        dense = self._dense(at, "", self.norm(x, f"{at}ffn_norm"))
        dense = self.norm(dense, f"{at}post_ffw_norm_1")
        routed = self.norm(x, f"{at}pre_ffw_norm_2")
        router_input = self.same(self.same(self.same(x)))
        experts = self._experts(at, router_input, routed)
        return self.same(dense, self.norm(experts, f"{at}post_ffw_norm_2"))

    def _feed_forward(self, at: str, x: Tensor) -> Tensor:
        if not self.arch.experts_used or not self.arch.has(f"{at}ffn_gate_inp.weight"):
            return self._dense(at, "", x)
        latent = f"{at}ffn_latent_down"
        has_latent = self.arch.has(f"{latent}.weight")
        routed = self.matrix(x, latent) if has_latent else x
        result = self._experts(at, x, routed)
        if has_latent:
            result = self.matrix(result, f"{at}ffn_latent_up")
        if not self.arch.has(f"{at}ffn_up_shexp.weight"):
            return result
        shared = self._dense(at, "_shexp", x)
        if self.arch.has(f"{at}ffn_gate_inp_shexp.weight"):
            gate = self.op((1, self.n), x)
            shared = self.same(shared, self.same(self.same(gate), gate))
        return self.same(result, shared)

    def _dense(self, at: str, kind: str, x: Tensor) -> Tensor:
        down = f"{at}ffn_down{kind}"
        width = (
            self.arch.tensors[f"{down}.weight"].shape[0]
            if self.arch.has(f"{down}.weight")
            else 0
        )
        up = self.matrix(x, f"{at}ffn_up{kind}")
        if self.arch.has(f"{at}ffn_gate{kind}.weight"):
            x = self.op((width, self.n), self.matrix(x, f"{at}ffn_gate{kind}"), up)
        elif up.shape[0] == 2 * width:  # gate and up in one matrix
            x = self.op((width, self.n), up)
        else:
            x = self.same(up)
        return self.matrix(x, down)

    def _experts(self, at: str, routed: Tensor, x: Tensor) -> Tensor:
        """``routed``: what the experts are chosen by."""
        used, n = self.arch.experts_used, self.n
        if not used:
            raise GgufError(
                f"{at}: there are experts, but no expert_count; the file is damaged"
            )
        scores = self.matrix(routed, f"{at}ffn_gate_inp")
        late = self.arch.name == "gpt-oss"  # the softmax comes after the choice
        scores = scores if late else self.same(scores)
        biased = self.same(scores) if self.arch.has(f"{at}exp_probs_b.bias") else scores
        if self.arch.has(f"{at}ffn_gate_tid2eid.weight"):  # by the token's number
            chosen = self.op((used, n), self.tokens)
        else:
            chosen = self.view(self.op(scores.shape, biased), (used, n))
        weights = self.op((1, used, n), self.view(scores, (1, *scores.shape)), chosen)
        if late:
            weights = self.view(self.same(self.view(weights, (used, n))), (1, used, n))
        elif self._weights_are_normed:
            flat = self.view(weights, (used, n))
            weights = self.view(
                self.same(flat, self.same(self.op((1, n), flat))), (1, used, n)
            )
        self.graph.expand(weights)
        x = self.view(x, (x.shape[0], 1, n))
        if self.arch.has(f"{at}ffn_gate_up_exps.weight"):
            both = self._expert_matrix(x, f"{at}ffn_gate_up_exps", chosen)
            half = (both.shape[0] // 2, *both.shape[1:])
            x = self.op(half, self.view(both, half), self.view(both, half))
            return self._weighed(at, x, weights, chosen)
        up = self._expert_matrix(x, f"{at}ffn_up_exps", chosen)
        if self.arch.has(f"{at}ffn_gate_exps.weight"):
            gate = self._expert_matrix(x, f"{at}ffn_gate_exps", chosen)
            x = self.op(gate.shape, gate, up)
        else:
            x = self.same(self.same(up))
        return self._weighed(at, x, weights, chosen)

    def _weighed(self, at: str, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The way back of each expert, times its weight, added up."""
        used, n = self.arch.experts_used, self.n
        x = self._expert_matrix(x, f"{at}ffn_down_exps", chosen)
        if self.arch.has(f"{at}ffn_down_exps.scale"):
            x = self.same(x, self.op((1, used, n), chosen))
        x = self.graph.expand(self.same(x, weights))
        parts = [self.graph.expand(self.view(x, (x.shape[0], n))) for _ in range(used)]
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.expand(self.same(total, part))
        return total if used > 1 else self.op(total.shape, total)

    @property
    def _weights_are_normed(self) -> bool:
        return self.arch.name not in (
            "qwen2moe",
            "deepseek2",
            "mistral4",
            "nemotron_h_moe",
        ) or self.arch.flag("expert_weights_norm")

    def _expert_matrix(self, x: Tensor, name: str, chosen: Tensor) -> Tensor:
        x = self.op(
            (self.arch.rows(f"{name}.weight"), self.arch.experts_used, self.n),
            x,
            chosen,
        )
        return self.same(x, chosen) if self.arch.has(f"{name}.bias") else x
