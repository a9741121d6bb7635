"""A checkpoint's tokenizer files as the vocabulary of a GGUF file."""
