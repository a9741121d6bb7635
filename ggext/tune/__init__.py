"""Fine-tuning at a longer context, from the RoPE table to the evaluated GGUF file."""
