"""Qwen 3.5, of text alone: what `qwen3_5` has as its text part."""

from ggext.converters.qwen3_5 import Qwen35

FAMILY = Qwen35
