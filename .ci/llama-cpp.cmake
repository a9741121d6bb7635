# Read by llama-cpp-python's project() when .ci/llama_cpp.py builds it (CMAKE_PROJECT_llama_cpp_INCLUDE).

# Its CMakeLists.txt forces the cache variable LLAMA_BUILD_COMMON on; a normal variable wins over that. What it leaves
# out, llama.cpp's `common`, is 110 of 193 compilation units together with mtmd, and nothing in Python calls it.
if(GGEXT_ENGINE_ONLY)
  set(LLAMA_BUILD_COMMON OFF)
endif()

# An explicit -mno-… wins over what -march=native switches on.
if(GGEXT_WITHOUT_AMX)
  string(PREPEND CMAKE_C_FLAGS "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16 ")
  string(PREPEND CMAKE_CXX_FLAGS "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16 ")
endif()
