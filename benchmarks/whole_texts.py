"""How fast whole texts are read, next to a loop over llama_decode with the best settings for each.

    python benchmarks/whole_texts.py SHAPE ... [--types q4_0 f16] [--busy 1] [--layers 8]
    [--rounds 5]

SHAPE: one of `shaped_model.SHAPES`, with random weights, made here; fewer layers leave each
operation as it is, but a model of under 20 million parameters would be read by one thread. ggext: a
session as it is by default, in a context as long as the longest text (a shorter one may have larger
batches); whether a context as long as the text has flash attention is what `ggext doctor --measure`
kept for this processor. The loop reads 512 tokens at once, without
flash attention and with it, by as many threads as there are cores. ``--busy``: so many other
programs compute meanwhile.

Timed are 512 tokens after so many that are cached (copies of some; f16), in rounds in which all
take turns. The time of a text is the sum over its tokens, the time of a token between two depths
growing evenly.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from shaped_model import SHAPES, TYPES, with_layers, write_shaped

from ggext.doctor.reading import DEPTHS, LENGTHS, text_seconds, token_times
from ggext.footprint.defaults import physical_cores
from ggext.runtime.engine import Model, Session, SessionOptions

_HEADS = (
    "| tokens | ggext | flash | loop | loop, flash | ggext × the faster loop |",
    "| --- | --- | --- | --- | --- | --- |",
)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many programs that compute."""
    programs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def four_times(model: Model, depths: list[int], rounds: int) -> list[dict[int, float]]:
    """Of ggext without flash attention and with it, and of the loop: depth → seconds a token."""
    loop = SessionOptions(threads=physical_cores(), n_batch=512)
    ways = [
        replace(each, flash_attention=flash)
        for each in (SessionOptions(), loop)
        for flash in (False, True)
    ]
    times = dict(token_times(model, ways, depths, rounds))
    return [{depth: each[way] for depth, each in times.items()} for way in range(4)]


def chosen(model: Model, length: int) -> bool:
    """Whether a context of so many tokens has flash attention by itself."""
    with Session(model, SessionOptions(n_ctx=length)) as session:
        return session.cache.flash_attention


def table(model: Model, longest: int, rounds: int) -> Iterator[str]:
    depths = [depth for depth in DEPTHS if depth < longest]
    times = four_times(model, depths, rounds)
    yield from _HEADS
    for length in LENGTHS:
        if length > longest:
            break
        off, on, *loops = (length / text_seconds(way, length) for way in times)
        flash = chosen(model, length)
        speed = on if flash else off
        yield (
            f"| {length:,} | {speed:,.0f} | {'on' if flash else 'off'} | {loops[0]:,.0f} | "
            f"{loops[1]:,.0f} | {speed / max(loops):.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["q4_0"])
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    for name, value in (("busy", 0), ("layers", 8), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {args.busy} of them busy, {args.layers} layers")
    with tempfile.TemporaryDirectory() as folder, busy(args.busy):
        for name in args.shapes:
            shape = with_layers(SHAPES[name], args.layers)
            for kind in args.types:
                path = write_shaped(Path(folder) / "model.gguf", shape, kind)
                with Model.open(path, gpu_layers=0) as model:
                    print(f"\n{name}, {kind}\n")
                    for line in table(model, args.longest, args.rounds):
                        print(line, flush=True)


if __name__ == "__main__":
    main()
