"""The Hugging Face side: configuration, tensors, tokenizer."""
