"""Qwen 3.5 with experts, of text alone: what `qwen3_5_moe` has as its text part."""

from ggext.converters.qwen3_5_moe import Qwen35Moe

FAMILY = Qwen35Moe
