"""MiniMax M3, of text alone: what `minimax_m3_vl` has as its text part."""

from ggext.converters.minimax_m3_vl import MiniMaxM3

FAMILY = MiniMaxM3
