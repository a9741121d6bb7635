"""A checkpoint or a GGUF file goes in, a GGUF file with the chosen RoPE scaling in it comes out."""

from ggext.convert.options import ConvertOptions, Plan
from ggext.convert.run import convert, execute, plan

__all__ = ["ConvertOptions", "Plan", "convert", "execute", "plan"]
