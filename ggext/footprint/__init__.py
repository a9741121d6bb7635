"""What llama.cpp will allocate for a model and a context, computed from the file's header.

Nothing is loaded and llama.cpp is not asked. The rules are those of the pinned llama.cpp, and the
tests hold the results to what that allocates.
"""
