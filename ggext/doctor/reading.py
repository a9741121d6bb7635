"""How long a text this processor reads faster with flash attention, measured on two layers of three
published shapes. Their heads have 64, 128 and 256 dimensions. It is kept for all later contexts."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.doctor.report import Finding
from ggext.doctor.shaped import Shape, write_shaped
from ggext.errors import GgextError
from ggext.footprint import speeds
from ggext.footprint.defaults import physical_cores

if TYPE_CHECKING:
    from ggext.runtime.engine import Session

#: Of SmolLM2 135M, Qwen3 0.6B and Gemma 3 1B, with a vocabulary in proportion.
SHAPES = (
    Shape(2, 576, 9, 3, 64, 1536, 3264, tied=True),
    Shape(2, 1024, 16, 8, 128, 3072, 10848, tied=True),
    Shape(2, 1152, 4, 1, 256, 6912, 20160, tied=True),
)
#: Tokens of the texts.
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
ROUNDS = 5
#: A text that is read in so much of the time is read faster; less is a clock's noise.
_FASTER = 0.97
#: A text that takes so much longer is the last one: no longer one will be read faster.
_HOPELESS = 1.25


def findings() -> Iterator[Finding]:
    """One for each size of heads; what was found is kept for this processor."""
    until: dict[int, int] = {}
    for shape in SHAPES:
        ratios = measure(shape, LENGTHS, ROUNDS)
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


def measure(shape: Shape, lengths: Sequence[int], rounds: int) -> dict[int, float]:
    """Length → time to read such a text with flash attention, to the time without: the median of
    rounds in which both take turns. Lengths after which it takes a quarter longer are left out."""
    from ggext.runtime.engine import Model, Session, SessionOptions

    with tempfile.TemporaryDirectory() as folder:
        path = write_shaped(Path(folder, "shaped.gguf"), shape, "q4_0")
        with Model.open(path) as model:
            options = [
                SessionOptions(
                    lengths[-1], physical_cores(), flash_attention=with_flash
                )
                for with_flash in (True, False)
            ]
            with Session(model, options[0]) as on, Session(model, options[1]) as off:
                return _ratios(on, off, lengths, rounds)


def _ratios(
    on: Session, off: Session, lengths: Sequence[int], rounds: int
) -> dict[int, float]:
    ratios: dict[int, list[float]] = {length: [] for length in lengths}
    most = lengths[-1]
    for turn in range(rounds):
        totals = [0.0, 0.0]
        for start, end in pairwise((0, *lengths)):
            if start >= most:
                break
            # A text of its own in each round, so that nothing of the last one is reused.
            text = [3 + (turn + place) % 250 for place in range(end)]
            for which in (0, 1) if turn % 2 else (1, 0):
                began = time.perf_counter()
                (on, off)[which].evaluate(text)
                totals[which] += time.perf_counter() - began
            ratios[end].append(totals[0] / totals[1])
            if totals[0] > _HOPELESS * totals[1]:
                most = min(most, end)
    return {
        length: statistics.median(each)
        for length, each in ratios.items()
        if len(each) == rounds
    }
