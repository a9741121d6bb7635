"""How long a text this processor reads faster with flash attention, measured on two layers of three
published shapes. Their heads have 64, 128 and 256 dimensions. It is kept for all later contexts."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.doctor.report import Finding
from ggext.doctor.shaped import Shape, write_shaped
from ggext.errors import GgextError
from ggext.footprint import speeds
from ggext.footprint.defaults import physical_cores

if TYPE_CHECKING:
    from typing import Self

    from ggext.runtime.engine import Model, SessionOptions

#: Of SmolLM2 135M, Qwen3 0.6B and Gemma 3 1B, with a vocabulary in proportion.
SHAPES = (
    Shape(2, 576, 9, 3, 64, 1536, 3264, tied=True),
    Shape(2, 1024, 16, 8, 128, 3072, 10848, tied=True),
    Shape(2, 1152, 4, 1, 256, 6912, 20160, tied=True),
)
#: Cached tokens after which reading is timed.
DEPTHS = (0, 256, 1024, 2048, 4096, 8192, 16384, 32256)
#: Tokens of the texts whose reading time follows from it.
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
ROUNDS = 5
#: Tokens that are read each time.
_READ = 512
#: Seconds that are timed, at the least: a small depth is read several times.
_TIMED = 0.1
#: A text that is read in so much of the time is read faster; less is a clock's noise.
_FASTER = 0.97
#: Where reading takes so much longer, no longer text will be read faster.
_HOPELESS = 1.25


def findings() -> Iterator[Finding]:
    """One for each size of heads; what was found is kept for this processor."""
    until: dict[int, int] = {}
    for shape in SHAPES:
        ratios = measure(shape, DEPTHS, ROUNDS)
        until[shape.head] = length = faster_until(ratios)
        yield Finding("speed", f"heads of {shape.head}", "ok", in_words(length, ratios))
    try:
        speeds.keep(until)
    except GgextError as error:
        yield Finding("speed", "kept", "missing", str(error))


def faster_until(ratios: Mapping[int, float]) -> int:
    """Tokens of the longest text up to which every one is read faster, 0 for none. ``ratios``:
    length → time with flash attention to the time without."""
    longest = 0
    for length in sorted(ratios):
        if ratios[length] > _FASTER:
            return longest
        longest = length
    return speeds.ANY_LENGTH


def in_words(length: int, ratios: Mapping[int, float]) -> str:
    times = ", ".join(f"{1 / ratio:.2f} × at {n:,}" for n, ratio in ratios.items())
    if length == speeds.ANY_LENGTH:
        use = "used on the CPU"
    elif length:
        use = f"used on the CPU in contexts of up to {length:,} tokens"
    else:
        use = "not used on the CPU"
    return f"flash attention is {use}: it reads {times} tokens"


def measure(shape: Shape, depths: Sequence[int], rounds: int) -> dict[int, float]:
    """Length → time to read such a text with flash attention, to the time without, for `LENGTHS`
    within what was timed: medians of rounds in which both take turns. Nothing is timed at depths
    after one that takes a quarter longer with it."""
    from ggext.runtime.engine import Model, SessionOptions

    with tempfile.TemporaryDirectory() as folder:
        path = write_shaped(Path(folder, "shaped.gguf"), shape, "q4_0")
        with Model.open(path) as model:
            ways = [
                SessionOptions(threads=physical_cores(), flash_attention=with_flash)
                for with_flash in (True, False)
            ]
            on: dict[int, float] = {}
            off: dict[int, float] = {}
            with closing(token_times(model, ways, depths, rounds)) as timed:
                for depth, (with_flash, without) in timed:
                    on[depth], off[depth] = with_flash, without
                    if with_flash > _HOPELESS * without:
                        break
    return {
        length: text_seconds(on, length) / text_seconds(off, length)
        for length in LENGTHS
        if length <= max(on) + _READ
    }


def token_times(
    model: Model, ways: Sequence[SessionOptions], depths: Sequence[int], rounds: int
) -> Generator[tuple[int, list[float]], None, None]:
    """Each depth, and the seconds in each way to read a token after so many: medians of rounds in
    which all take turns."""
    with ExitStack() as stack:
        readers = [
            stack.enter_context(Reader(model, options, depths[-1])) for options in ways
        ]
        for depth in depths:
            for reader in readers:
                reader.fill(depth)
            yield depth, [*map(statistics.median, in_turn(readers, rounds))]


def in_turn(readers: Sequence[Reader], rounds: int) -> list[list[float]]:
    """Seconds a token of each reader in each round; the first reading of each warms up."""
    repeats = max(1, round(_TIMED / (_READ * max(one.seconds() for one in readers))))
    timed: list[list[float]] = [[] for _ in readers]
    for turn in range(rounds):
        order = range(len(readers))
        for which in reversed(order) if turn % 2 else order:
            each = [readers[which].seconds() for _ in range(repeats)]
            timed[which].append(statistics.fmean(each))
    return timed


def text_seconds(times: Mapping[int, float], length: int) -> float:
    """Seconds to read a text of so many tokens. ``times``: depth → seconds to read a token after
    so many. Between the depths the time of a token grows evenly with what it attends to."""
    import numpy as np

    middles = [depth + _READ / 2 for depth in times]
    places = np.arange(length) + 0.5
    return float(np.interp(places, middles, list(times.values())).sum())


class Reader:
    """A context that is filled with copies of some tokens, and the time to read more after them.

    What stands in the cells is all the same to a clock. ``longest``: of its depths, in tokens.
    """

    def __init__(self, model: Model, options: SessionOptions, longest: int) -> None:
        from ggext.runtime.engine import MemoryOptions, Session

        options = replace(
            options,
            n_ctx=longest + 2 * _READ,
            memory=MemoryOptions("stream", evict=_READ),
        )
        self.session = Session(model, options)
        self._tokens = [3 + place % 250 for place in range(_READ)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def fill(self, depth: int) -> None:
        """So many tokens are cached, no fewer than before."""
        import numpy as np

        cache = self.session.cache
        missing = depth - len(cache.tokens)
        if not cache.tokens and missing:
            cache.append_all(self._tokens[:missing])
        block = cache.take(0, min(len(cache.tokens), _READ))
        while len(cache.tokens) < depth:
            start = len(cache.tokens)
            now = np.arange(start, min(start + len(block), depth), dtype=np.int32)
            cache.put(replace(block.cells(slice(0, len(now))), positions=now))
            cache.tokens = [5] * (start + len(now))
            cache.positions = [*range(len(cache.tokens))]

    def seconds(self) -> float:
        """To read a token after them."""
        cache = self.session.cache
        depth = len(cache.tokens)
        began = time.perf_counter()
        for batch in cache.batches.split(self._tokens, depth, cache.n_batch):
            cache.threads.look()
            cache.append(batch)
        passed = time.perf_counter() - began
        cache.cut(depth)
        return passed / _READ
