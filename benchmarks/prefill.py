"""Reading and writing behind many cached tokens, with flash attention and without, and how soon a cancel is seen.

    python benchmarks/prefill.py SHAPE ... [--layers 2] [--threads 2] [--depths 0,2048,8192,32768] [--rounds 5]
    python benchmarks/prefill.py SHAPE ... --cancels 40

SHAPE: one of `shaped_model.SHAPES`, Q4_0 with random weights, made here; fewer layers leave each operation as it is.
The cache is filled with copies of 512 tokens, f16. ggext's own batch is read, and 512 tokens at once with flash
attention, as llama.cpp's programs do by default; all take turns, and the last two columns are medians of each round's
ratio, without flash attention to with it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from shaped_model import SHAPES, with_layers, write_shaped

from ggext.runtime.engine import MemoryOptions, Model, Sampling, Session, SessionOptions

COPIED = 512
PROMPT = 512
WRITTEN = 4
_SPEEDS = (
    "| cached | reads, off | reads, on | 512 at once, on | writes, off | writes, on | × reads | × writes |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)
_CANCELS = ("| cached | while | batch | median, ms | worst, ms |", "| --- | --- | --- | --- | --- |")


class Reader:
    """A context with ``depth`` cached tokens, and what reading and writing behind them comes to."""

    def __init__(self, model: Model, depth: int, options: SessionOptions) -> None:
        options = replace(options, n_ctx=depth + 2 * PROMPT, memory=MemoryOptions("stream", evict=PROMPT))
        self.session = Session(model, options)
        self.depth = depth
        cache = self.session.cache
        if depth:
            cache.append([3 + i % 250 for i in range(min(COPIED, cache.n_batch))])
            block = cache.take(0, len(cache.tokens))
            for start in range(len(block), depth, len(block)):
                cache.put(replace(block, positions=block.positions + start))
            cache.tokens, cache.positions = [5] * depth, list(range(depth))

    def read(self, count: int) -> float:
        """Tokens a second."""
        start = time.perf_counter()
        assert self.session.cache.append([3 + i % 250 for i in range(count)])
        seconds = time.perf_counter() - start
        self.back()
        return count / seconds

    def write(self) -> float:
        start = time.perf_counter()
        for _ in range(WRITTEN):
            assert self.session.cache.append_one(7)
        seconds = time.perf_counter() - start
        self.back()
        return WRITTEN / seconds

    def back(self) -> None:
        self.session.cache.cut(self.depth)

    def cancel_reading(self, seconds: float) -> float:
        """Milliseconds from a cancel, so long after the start, to the end; a prompt that ends before is no answer."""
        tokens = [5] * self.depth + [3 + i % 250 for i in range(PROMPT)]
        with _cancelled(self.session, seconds) as told:
            prefill = self.session.evaluate(tokens)
            ended = time.perf_counter()
        self.back()
        assert prefill.cancelled
        return (ended - told.at) * 1e3

    def cancel_writing(self, seconds: float) -> float:
        self.session.evaluate([5] * self.depth + [9])
        with _cancelled(self.session, seconds) as told:
            for _ in self.session.generate(Sampling(temperature=5)):
                pass
            ended = time.perf_counter()
        self.back()
        return (ended - told.at) * 1e3


class _cancelled:  # noqa: N801 - a context manager
    """Cancels from another thread after some seconds; ``at`` says when that was."""

    def __init__(self, session: Session, seconds: float) -> None:
        self.at = 0.0
        self._timer = threading.Timer(seconds, self._cancel, [session])

    def _cancel(self, session: Session) -> None:
        self.at = time.perf_counter()
        session.cancel()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.join()


def speeds(model: Model, depth: int, threads: int, rounds: int) -> str:
    """A row of the table."""
    made = SessionOptions(threads=threads)
    with ExitStack() as stack:
        off, on, llama = (
            stack.enter_context(reader.session) and reader
            for reader in (
                Reader(model, depth, replace(made, flash_attention=False)),
                Reader(model, depth, replace(made, flash_attention=True)),
                Reader(model, depth, replace(made, flash_attention=True, n_batch=512)),
            )
        )
        batch = off.session.n_batch
        found = [
            (off.read(batch), on.read(batch), llama.read(512), off.write(), on.write()) for _ in range(rounds + 1)
        ][1:]
    middle = [statistics.median(column) for column in zip(*found, strict=True)]
    reads = statistics.median(row[0] / row[1] for row in found)
    writes = statistics.median(row[3] / row[4] for row in found)
    cells = " | ".join(f"{value:,.1f}" for value in middle)
    return f"| {depth:,} | {cells} | {reads:.2f} | {writes:.2f} |"


def cancels(model: Model, depth: int, threads: int, count: int) -> Iterator[str]:
    rng = random.Random(0)
    with (reader := Reader(model, depth, SessionOptions(threads=threads))).session:
        batch = reader.session.n_batch
        seconds = PROMPT / reader.read(batch) / 2  # half of the prompt: even twice as fast it is not at its end
        for name, once in (("reading", reader.cancel_reading), ("writing", reader.cancel_writing)):
            found = [once(rng.random() * min(seconds, 1.5)) for _ in range(count)]
            yield f"| {depth:,} | {name} | {batch} | {statistics.median(found):.1f} | {max(found):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--depths", default="0,2048,8192,32768")
    for name, value in (("layers", 2), ("threads", 2), ("rounds", 5), ("cancels", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {args.threads} threads, Q4_0, cache f16, {args.layers} layers")
    for name in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            path = write_shaped(Path(folder) / "model.gguf", with_layers(SHAPES[name], args.layers), "q4_0")
            with Model.open(path, gpu_layers=0) as model:
                print(f"\n{name} ({SHAPES[name].layers} layers in full)\n")
                print("\n".join(_CANCELS if args.cancels else _SPEEDS))
                for depth in map(int, args.depths.split(",")):
                    if args.cancels:
                        print(*cancels(model, depth, args.threads, args.cancels), sep="\n", flush=True)
                    else:
                        print(speeds(model, depth, args.threads, args.rounds), flush=True)


if __name__ == "__main__":
    main()
