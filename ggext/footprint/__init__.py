"""What llama.cpp will allocate for a model and a context, computed from the file's header.

Nothing is loaded and llama.cpp is not asked. The rules are those of llama.cpp 0c1e57098, and the
tests hold the results to what that allocates.
"""
