"""Qwen 3's mixture of experts: Qwen 3 with routed experts, the weights of the chosen ones
normalized."""

from __future__ import annotations

from ggext.converters.qwen2_moe import QwenExperts
from ggext.converters.qwen3 import Qwen3


class Qwen3Moe(QwenExperts, Qwen3):
    arch = "qwen3moe"
    defaults = QwenExperts.defaults  # the class states no head_dim of its own
    normalizes = True


FAMILY = Qwen3Moe
