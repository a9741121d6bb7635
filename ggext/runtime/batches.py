"""How many tokens are read at once at each place of a text: so few that a cancel is seen soon.

llama.cpp asks whether to stop between two operations of its graph. On a CPU the longest one is the
products of all queries and keys, which grows with what stands in the cache; so fewer are read at
once there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ggext.footprint import defaults
from ggext.footprint.architecture import Architecture
from ggext.footprint.cache import Context, cells

_STEP = 8
#: Fewer do not shorten it: the keys pass through the processor all the same. With flash attention
#: fewer take llama.cpp's path without tiles, which is slower in all
#: (`benchmarks/results/generate.md`).
LEAST = 16
LEAST_FLASH = 64


@dataclass(frozen=True)
class Batches:
    """How many tokens are read at once.

    The number depends on nothing but these fields and the place in the text, so that the same text
    is read in the same batches, to the last bit of its logits.
    """

    # Wherever `attention` is short.
    most: int
    # Share the multiplications.
    threads: int = 1
    # Of each kind of layer the cells of its cache, and the multiplications by which a token meets
    # one.
    attention: frozenset[tuple[int, int]] = frozenset()
    # Not fewer.
    least: int = LEAST

    def at(self, place: int) -> int:
        """Tokens that are read at once after `place` tokens of a text; never more than after
        fewer."""
        within = defaults.SOON * defaults.SPEED * self.threads
        work = max(
            (
                2 * each * min(place + self.most, count)
                for count, each in self.attention
            ),
            default=0,
        )
        if work * self.most <= within:
            return self.most
        return min(self.most, max(int(within / work) // _STEP * _STEP, self.least))

    def digest(self) -> str:
        """What tells batches that part a text in the same places from others."""
        return f"{self.most} {self.threads} {sorted(self.attention)} {self.least}"

    def ends(self, start: int, end: int, most: int) -> Iterator[int]:
        """Where the whole batches of tokens `start` to `end` of a text end, none longer than
        `most`."""
        while (start := start + min(self.at(start), most)) <= end:
            yield start

    def split(
        self, tokens: Sequence[int], start: int, most: int
    ) -> Iterator[list[int]]:
        """Tokens that stand after `start` others, in batches of at most `most`, the last one as it
        comes."""
        first = start
        end = start + len(tokens)
        for last in self.ends(start, end, most):
            yield list(tokens[first - start : last - start])
            first = last
        if first < end:
            yield list(tokens[first - start :])


def attention(arch: Architecture, context: Context) -> frozenset[tuple[int, int]]:
    """`Batches.attention` of a model in such a context; with flash attention the products with the
    values are of the same operation."""
    products = 2 if context.flash_attention else 1
    return frozenset(
        (
            cells(arch, layer, context),
            products * layer.heads * max(layer.key, layer.value),
        )
        for layer in arch.layers
    )
