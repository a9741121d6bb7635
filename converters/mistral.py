"""Mistral 7B and its successors of the same shape: Llama's blocks under other names in config.json.

llama.cpp's architecture has no sliding window. Version 0.1 has one of 4096 in a context of 32768.
So the context is limited to the window: attending to everything is the same up to there.
"""

from __future__ import annotations

from ggext.converters.llama import Windowed


class Mistral(Windowed):
    defaults = {"sliding_window": 4096}


FAMILY = Mistral
