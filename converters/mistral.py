"""Mistral 7B and its successors of the same shape: Llama's blocks under other names in config.json.

A window that is shorter than the context (version 0.1 has 4096 of 32768) llama.cpp's architecture
has not: the context is limited to it, up to which attending to everything is the same.
"""

from __future__ import annotations

from ggext.converters.llama import Windowed


class Mistral(Windowed):
    defaults = {"sliding_window": 4096}


FAMILY = Mistral
