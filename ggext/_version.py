"""The version, where every part may read it; it is pyproject.toml's."""

__version__ = "0.2.0"
