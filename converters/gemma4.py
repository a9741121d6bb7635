"""Gemma 4 that sees and hears too: what concerns text is Gemma 4."""

from ggext.converters.gemma4_text import Gemma4

FAMILY = Gemma4
