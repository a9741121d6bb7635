"""llama.cpp's libraries, which ctypes opens by their paths."""

from PyInstaller.utils.hooks import collect_dynamic_libs, copy_metadata

binaries = collect_dynamic_libs("llama_cpp")
datas = copy_metadata("llama_cpp_python")  # with its licence
