"""Qwen 2 and 2.5: Llama's blocks with biases on Q, K and V, rotated in halves as transformers
does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ggext.converters.llama import QKV, Llama


class Qwen2(Llama):
    arch = "qwen2"
    biased = QKV
    bias_flags: ClassVar[Mapping[str, str]] = {}  # always there


FAMILY = Qwen2
