"""Seed-OSS: Llama's blocks with biases on Q, K and V, rotated in halves as transformers does."""

from __future__ import annotations

from ggext.converters.llama import QKV, Llama


class SeedOss(Llama):
    arch = "seed_oss"
    defaults = {"head_dim": 128, "attention_bias": True}
    biased = QKV


FAMILY = SeedOss
