"""Reading and writing behind many cached tokens, with flash attention and without, and how soon a
cancel is seen.

    python benchmarks/prefill.py SHAPE ... [--layers 2] [--threads 2] [--depths 0,2048] [--rounds 5]
    python benchmarks/prefill.py SHAPE ... --cancels 40 [--batch 64]
    python benchmarks/prefill.py SHAPE ... --nodes 1,8,16,32,64 [--flash]

SHAPE: one of `shaped_model.SHAPES`, Q4_0 (or ``--type``) with random weights, made here; fewer
layers leave each operation as it is. The cache is filled with copies of 512 tokens, f16. Read are
512 tokens: in ggext's own batches, 64 at once, 512 at once, and 512 at once with flash attention,
as llama.cpp's programs do by default; all take turns, and the last columns are medians of each
round's ratio, ggext's speed to the other's. ``--nodes``: the longest
operation, least of 4 rounds.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from shaped_model import SHAPES, TYPES, with_layers, write_shaped

from ggext.doctor import reading
from ggext.runtime import llama
from ggext.runtime.engine import Model, Sampling, Session, SessionOptions
from ggext.runtime.ggml import Tensor

PROMPT = 512
WRITTEN = 4
_SPEEDS = (
    (
        "| cached | reads | of 64 | of 512 | 512, flash | writes | writes, flash | × 64 | × 512 | "
        "× llama.cpp | × flash |"
    ),
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
_NODES = (
    "| cached | at once | longest operation, ms of wall | of a thread's time |",
    "| --- | --- | --- | --- |",
)
_CANCELS = (
    (
        "| cached | while | batch | median, ms | worst, ms | median of a thread's time | worst of "
        "a thread's time |"
    ),
    "| --- | --- | --- | --- | --- | --- | --- |",
)


class Reader(reading.Reader):
    """A context with ``depth`` cached tokens, and what reading and writing behind them comes to."""

    def __init__(self, model: Model, depth: int, options: SessionOptions) -> None:
        super().__init__(model, options, depth)
        self.fill(depth)
        self.depth = depth

    def read(self) -> float:
        """Tokens a second."""
        return 1 / self.seconds()

    def write(self) -> float:
        start = time.perf_counter()
        for _ in range(WRITTEN):
            assert self.session.cache.append_one(7)
        seconds = time.perf_counter() - start
        self.back()
        return WRITTEN / seconds

    def back(self) -> None:
        self.session.cache.cut(self.depth)

    def cancel_reading(self, seconds: float) -> tuple[float, float]:
        """Milliseconds from a cancel, so long after the start, to the end, of the clock on the wall
        and of the processor; a prompt that ends before is no answer."""
        tokens = [5] * self.depth + [3 + i % 250 for i in range(PROMPT)]
        with _cancelled(self.session, seconds) as told:
            prefill = self.session.evaluate(tokens)
            since = told.since()
        self.back()
        assert prefill.cancelled
        return since

    def cancel_writing(self, seconds: float) -> tuple[float, float]:
        self.session.evaluate([5] * self.depth + [9])
        with _cancelled(self.session, seconds) as told:
            for _ in self.session.generate(Sampling(temperature=5)):
                pass
            since = told.since()
        self.back()
        return since


class _cancelled:  # noqa: N801 - a context manager
    """Cancels from another thread after some seconds; ``since`` says how long ago that was."""

    def __init__(self, session: Session, seconds: float) -> None:
        self._at = (0.0, 0.0)
        self._timer = threading.Timer(seconds, self._cancel, [session])

    def _cancel(self, session: Session) -> None:
        self._at = time.perf_counter(), time.process_time()
        session.cancel()

    def since(self) -> tuple[float, float]:
        return (time.perf_counter() - self._at[0]) * 1e3, (
            time.process_time() - self._at[1]
        ) * 1e3

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.join()


class Clock:
    """Milliseconds that each node of the graph took, by `SessionOptions.eval_callback`: of the
    clock on the wall and of the processor."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float, str]] = []
        self._since = (0.0, 0.0)
        self.callback = llama.lib().ggml_backend_sched_eval_callback(self._see)

    def _see(self, address: int, ask: bool, _user_data: object) -> bool:
        now = time.perf_counter(), time.process_time()
        if ask:
            self._since = now
        else:
            name = Tensor.from_address(address).name
            wall, spent = (
                1e3 * (after - before)
                for before, after in zip(self._since, now, strict=True)
            )
            self.found.append((wall, spent, str(name, "utf-8")))
        return True


def speeds(model: Model, depth: int, threads: int, rounds: int) -> str:
    """A row of the table."""
    off = SessionOptions(threads=threads, flash_attention=False)
    on = replace(off, flash_attention=True)
    with ExitStack() as stack:
        ours, fixed, large, llama_cpp, flash = (
            stack.enter_context(reader.session) and reader
            for reader in (
                Reader(model, depth, options)
                for options in (
                    off,
                    replace(off, n_batch=64),
                    replace(off, n_batch=512),
                    replace(on, n_batch=512),
                    on,
                )
            )
        )
        readers = ours, fixed, large, llama_cpp
        found = [
            [*(reader.read() for reader in readers), ours.write(), flash.write()]
            for _ in range(rounds + 1)
        ][1:]
    middle = [statistics.median(column) for column in zip(*found, strict=True)]
    pairs = (0, 1), (0, 2), (0, 3), (4, 5)
    ratios = [
        statistics.median(row[first] / row[second] for row in found)
        for first, second in pairs
    ]
    cells = [f"{value:,.1f}" for value in middle] + [f"{ratio:.2f}" for ratio in ratios]
    return " | ".join([f"| {depth:,}", *cells]) + " |"


def nodes(
    model: Model,
    depth: int,
    options: SessionOptions,
    counts: list[int],
    rounds: int = 4,
) -> Iterator[str]:
    for count in counts:
        clock = Clock()
        made = replace(options, n_batch=count, eval_callback=clock.callback)
        with (reader := Reader(model, depth, made)).session:
            longest = []
            for _ in range(rounds):
                clock.found.clear()
                reader.read()
                longest.append(max(clock.found))
        wall, _, name = min(longest)
        spent = min(spent for _, spent, _ in longest) / (options.threads or 1)
        yield f"| {depth:,} | {count} | {wall:.0f} ({name}) | {spent:.0f} |"


def cancels(
    model: Model, depth: int, options: SessionOptions, count: int
) -> Iterator[str]:
    rng = random.Random(0)
    with (reader := Reader(model, depth, options)).session:
        batch = min(reader.session.n_batch, reader.session.cache.batches.at(depth))
        seconds = (
            PROMPT / reader.read() / 2
        )  # half of the prompt: even twice as fast it is not at its end
        for name, once in (
            ("reading", reader.cancel_reading),
            ("writing", reader.cancel_writing),
        ):
            found = [once(rng.random() * min(seconds, 1.5)) for _ in range(count)]
            wall, spent = zip(*found, strict=True)
            threads = options.threads or 1
            columns = [
                *_middle_and_worst(wall),
                *(value / threads for value in _middle_and_worst(spent)),
            ]
            yield (
                " | ".join(
                    [
                        f"| {depth:,}",
                        name,
                        str(batch),
                        *(f"{value:.1f}" for value in columns),
                    ]
                )
                + " |"
            )


def _middle_and_worst(values: Sequence[float]) -> tuple[float, float]:
    return statistics.median(values), max(values)


def table(model: Model, args: argparse.Namespace) -> Iterator[str]:
    options = SessionOptions(
        threads=args.threads, n_batch=args.batch, flash_attention=args.flash
    )
    yield from _NODES if args.nodes else _CANCELS if args.cancels else _SPEEDS
    for depth in map(int, args.depths.split(",")):
        if args.nodes:
            yield from nodes(
                model, depth, options, [int(count) for count in args.nodes.split(",")]
            )
        elif args.cancels:
            yield from cancels(model, depth, options, args.cancels)
        else:
            yield speeds(model, depth, args.threads, args.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--depths", default="0,2048,8192,32768")
    for name, value in (("layers", 2), ("threads", 2), ("rounds", 5), ("cancels", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--type", choices=TYPES, default="q4_0")
    parser.add_argument("--nodes", metavar="N,...")
    parser.add_argument("--flash", action="store_true")
    args = parser.parse_args()
    print(
        f"{os.cpu_count()} CPUs, {args.threads} threads, {args.type}, cache f16, "
        f"{args.layers} layers"
    )
    for name in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            path = write_shaped(
                Path(folder) / "model.gguf",
                with_layers(SHAPES[name], args.layers),
                args.type,
            )
            with Model.open(path, gpu_layers=0) as model:
                print(f"\n{name} ({SHAPES[name].layers} layers in full)\n")
                for line in table(model, args):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
