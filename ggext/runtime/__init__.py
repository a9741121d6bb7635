"""The engine: tokens in, tokens out. It knows nothing of templates, turns or the terminal."""
