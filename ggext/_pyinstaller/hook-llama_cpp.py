"""llama.cpp's libraries, which ctypes opens by their paths."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("llama_cpp")
