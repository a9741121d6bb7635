"""Mistral 7B and its successors of the same shape: Llama's blocks under other names in config.json."""

from __future__ import annotations

from ggext.converters.llama import Windowed


class Mistral(Windowed):
    defaults = {"sliding_window": 4096}


FAMILY = Mistral
