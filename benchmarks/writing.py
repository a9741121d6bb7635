"""Tokens a second that a program gets, each way in a process of its own, against a tight loop.

    python benchmarks/writing.py MODEL.gguf [--prompt 64] [--tokens 48] [--rounds 15] [--threads 2]
    [--only WAY ...]

The ways take turns, in a shuffled order each round: the table has the median of tokens a second,
the median of each round's ratio to the tight loop and its quartiles, and what does not depend on
the load so much: processor time, context switches and the wake-ups of the thread that reads, a
token. Processes apart, because OpenMP's threads of one loop change how those of another wait. The
tight loop is llama_decode and llama_sampler_sample and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import generate
from generate import CONTEXT, GREEDY, Task

import ggext
from ggext.runtime.engine import Model, SessionOptions


class Round(NamedTuple):
    """One answer: tokens a second; a token's seconds of processor time and context switches, of
    the process and its children, and those of the thread that reads."""

    speed: float
    seconds: float
    switches: float
    own: float


def _switches(pid: int, task: int | None = None) -> int:
    """Context switches of all threads of a process, or of one."""
    tasks = [str(task)] if task else os.listdir(f"/proc/{pid}/task")
    total = 0
    for name in tasks:
        with open(f"/proc/{pid}/task/{name}/status") as file:
            total += sum(
                int(line.split()[1]) for line in file if "ctxt_switches" in line
            )
    return total


def _seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _program(
    path: Path, task: Task, stack: ExitStack, *, isolated: bool = False
) -> ggext.Model:
    options = SessionOptions(
        threads=task.threads, n_batch=task.batch, flash_attention=False
    )
    settings = ggext.Settings(
        options, gpu_layers=0, cache=ggext.PrefixOptions(memory=0)
    )
    model = ggext.Model(path, CONTEXT, settings=settings, isolated=isolated)
    return stack.enter_context(model)


def _asked(model: ggext.Model, task: Task) -> ggext.Reply:
    return model.complete(
        "word " * len(task.prompt), sampling=GREEDY, max_tokens=task.tokens
    )


def plain(path: Path, task: Task, stack: ExitStack, *, isolated: bool = False) -> Any:
    model = _program(path, task, stack, isolated=isolated)

    def run() -> tuple[float, int]:
        reply, first = _asked(model, task), 0.0
        for _ in reply:
            first = first or time.perf_counter()
        return first, reply.count

    return run


def isolated(path: Path, task: Task, stack: ExitStack) -> Any:
    return plain(path, task, stack, isolated=True)


def in_asyncio(path: Path, task: Task, stack: ExitStack) -> Any:
    model = _program(path, task, stack)

    async def ask() -> tuple[float, int]:
        reply, first = _asked(model, task), 0.0
        async for _ in reply:
            first = first or time.perf_counter()
        return first, reply.count

    return lambda: asyncio.run(ask())


def tight(path: Path, task: Task, stack: ExitStack) -> Any:
    model = stack.enter_context(Model.open(path, gpu_layers=0))
    return generate.tight_loop(model, task, False, stack)


def session(path: Path, task: Task, stack: ExitStack) -> Any:
    model = stack.enter_context(Model.open(path, gpu_layers=0))
    return generate.by_session(model, task, stack)


WAYS: dict[str, Callable[[Path, Task, ExitStack], Any]] = {
    "tight loop": tight,
    "ggext Session": session,
    "ggext.Model": plain,
    "ggext.Model, asyncio": in_asyncio,
    "ggext.Model, isolated": isolated,
    "Llama, streamed completion": generate.by_llama,
}


def contestant(name: str, path: Path, task: Task, pipe: Any) -> None:
    """The process of one way: a round for each message."""
    with ExitStack() as stack:
        run = WAYS[name](path, task, stack)
        run()
        pipe.send(None)
        while pipe.recv():
            pids = [os.getpid(), *(int(pid) for pid in _children())]
            before = [(_seconds(pid), _switches(pid)) for pid in pids]
            own = _switches(os.getpid(), os.getpid())
            result = run()
            end = time.perf_counter()
            after = [(_seconds(pid), _switches(pid)) for pid in pids]
            speed = (
                result.wrote
                if isinstance(result, generate.Speed)
                else result[1] / (end - result[0])
            )
            seconds, switches = (
                sum(a[i] - b[i] for a, b in zip(after, before, strict=True))
                / task.tokens
                for i in (0, 1)
            )
            own = _switches(os.getpid(), os.getpid()) - own
            pipe.send(Round(speed, seconds, switches, own / task.tokens))


def _children() -> list[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        found = file.read().split()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found += file.read().split()
    return sorted(set(found))


def measure(
    path: Path, task: Task, rounds: int, names: list[str]
) -> dict[str, list[Round]]:
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    for name in names:
        pipes[name], there = context.Pipe()
        context.Process(
            target=contestant,
            args=(name, path, task, there),
            daemon=name != "ggext.Model, isolated",
        ).start()
        pipes[name].recv()
    found: dict[str, list[Round]] = {name: [] for name in names}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            pipes[name].send(True)
            found[name].append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send(False)
    return found


def report(found: dict[str, list[Round]]) -> None:
    print(
        "| | tokens/s | × tight loop | quartiles | CPU ms a token | switches a token | reader's |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, rounds in found.items():
        ratios = [
            a.speed / b.speed for a, b in zip(rounds, found["tight loop"], strict=True)
        ]
        low, middle, high = (
            statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        )
        speed, seconds, switches, own = map(
            statistics.median, zip(*rounds, strict=True)
        )
        print(
            f"| {name} | {speed:.1f} | {middle:.3f} | {low:.2f} to {high:.2f} | "
            f"{1000 * seconds:.1f} | {switches:.1f} | {own:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    for name, value in (("prompt", 64), ("tokens", 48), ("rounds", 15), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", action="append", choices=WAYS, default=[])
    args = parser.parse_args()
    names = [
        name for name in WAYS if not args.only or name in ("tight loop", *args.only)
    ]
    task = Task(
        [3 + i % 250 for i in range(args.prompt)], args.tokens, args.threads, 64
    )
    load = f"load {os.getloadavg()[0]:.1f}"
    found = measure(args.model, task, args.rounds, names)
    load += f" to {os.getloadavg()[0]:.1f}"
    print(f"{args.model.name}, {os.cpu_count()} CPUs, {args.threads} threads, {load}")
    print(f"{args.prompt} + {args.tokens} tokens, {args.rounds} rounds\n")
    report(found)


if __name__ == "__main__":
    main()
