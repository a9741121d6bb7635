"""ggext: long contexts for local models, baked into GGUF files, proved in numbers, and run.

The functions are where their modules are, ``ggext.convert.convert`` and ``ggext.verify.verify``; here
stand the types that both take. The scaling types import nothing but the standard library.
"""

from ggext.errors import GgextError
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

__version__ = "0.1.0"

__all__ = ["GgextError", "RopeGeometry", "RopeScaling", "RopeTable", "__version__"]
