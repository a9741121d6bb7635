"""Qwen 2.5-VL: its text is that of Qwen 2-VL."""

from ggext.converters.qwen2_vl import FAMILY

__all__ = ["FAMILY"]
