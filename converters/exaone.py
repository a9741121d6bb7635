"""EXAONE 3, 3.5 and Deep: Llama's blocks under other names, rotated in halves."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import Llama


class Exaone(Llama):
    arch = "exaone"
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    }
    defaults = {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    biased = ()
    free_head_dim = False
    embedding = "transformer.wte"

    def tensors(self) -> Iterator[TensorRule]:
        q_rows = self.n_heads * self.head_dim
        kv_rows = self.n_kv_heads * self.head_dim
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield weight("transformer.ln_f", self.n_embd)
        yield from self.output()
        for i in range(self.n_layers):
            block = f"transformer.h.{i}"
            attention = f"{block}.attn.attention"
            mlp = f"{block}.mlp"
            target = f"blk.{i}.ffn"
            yield weight(f"{block}.ln_1", self.n_embd)
            yield weight(f"{block}.ln_2", self.n_embd)
            yield weight(f"{attention}.q_proj", q_rows, self.n_embd)
            yield weight(f"{attention}.k_proj", kv_rows, self.n_embd)
            yield weight(f"{attention}.v_proj", kv_rows, self.n_embd)
            yield weight(f"{attention}.out_proj", self.n_embd, q_rows)
            yield weight(
                f"{mlp}.c_fc_0", self.n_ff, self.n_embd, target=f"{target}_gate.weight"
            )
            yield weight(
                f"{mlp}.c_fc_1", self.n_ff, self.n_embd, target=f"{target}_up.weight"
            )
            yield weight(f"{mlp}.c_proj", self.n_embd, self.n_ff)


FAMILY = Exaone
