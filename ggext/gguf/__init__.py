"""The GGUF file format: a bounds-checked header reader and a streaming writer."""
