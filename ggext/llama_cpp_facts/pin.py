"""The llama.cpp that ggext is written for. Moving it: docs/releasing.md.

The package's metadata names the same release of llama-cpp-python (pyproject.toml, extra ``run``).
"""

#: The release of llama-cpp-python: ctypes lays out llama.cpp's structs as this one has them.
LLAMA_CPP_PYTHON = "0.3.36"
#: The commit of llama.cpp inside it, whose sources ggext's facts were read from and tried on.
LLAMA_CPP_COMMIT = "0c1e57098"
