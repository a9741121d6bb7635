"""StableLM 3B, StableLM 2 and their Zephyrs: layer norms, a quarter of each head rotated; the 12B
one has norms of each head's query and key, and runs attention and feed-forward side by side."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, stacked
from ggext.converters.llama import QKV, LlamaWithLayerNorm


class StableLM(LlamaWithLayerNorm):
    arch = "stablelm"
    defaults = {"layer_norm_eps": 1e-5}
    biased = QKV
    bias_flags = dict.fromkeys(QKV, "use_qkv_bias")
    rotates_part = True
    free_head_dim = False
    needs_output = True

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield from self.norm(f"{block}.input_layernorm")
        if not self.config.flag("use_parallel_residual"):
            yield from self.norm(f"{block}.post_attention_layernorm")

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        if self.config.flag("qk_layernorm"):
            block = module.removeprefix("model.layers.").removesuffix(".self_attn")
            for name, heads in (("q", self.n_heads), ("k", self.n_kv_heads)):
                target = f"blk.{block}.attn_{name}_norm.weight"
                yield stacked(
                    f"{module}.{name}_layernorm.norms.{{}}",
                    heads,
                    self.head_dim,
                    target=target,
                )


FAMILY = StableLM
