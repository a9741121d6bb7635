"""What ggext knows of llama.cpp, each fact once: limits, sliding layers, what its loaders want.

Read from llama.cpp's sources. `rope`, `footprint`, `runtime` and the docs read it here; it imports
nothing of ggext.
"""
