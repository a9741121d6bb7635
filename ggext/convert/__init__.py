"""A checkpoint or a GGUF file goes in, a GGUF file with the chosen RoPE scaling in it comes out."""

from ggext.convert.run import ConvertOptions, Plan, convert, execute, plan

__all__ = ["ConvertOptions", "Plan", "convert", "execute", "plan"]
