"""RoPE: the request, the table it means, and the GGUF keys and tensors that stand for it."""
