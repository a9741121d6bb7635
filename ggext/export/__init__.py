"""A GGUF file back to a Hugging Face checkpoint, to be tuned or read by other programs."""

from ggext.export.run import Exported, ExportOptions, export

__all__ = ["ExportOptions", "Exported", "export"]
