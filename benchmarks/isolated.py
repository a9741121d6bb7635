"""What llama.cpp in a process of its own costs, and that killing it loses nothing.

    python benchmarks/isolated.py cost MODEL.gguf [--rounds 15] [--tokens 24]
    python benchmarks/isolated.py trial MODEL.gguf [--rounds 15]
    python benchmarks/isolated.py kills MODEL.gguf [--times 100] [--seed 1]

``cost`` prints a Markdown table: a start from a fresh interpreter to a model that is ready, and
one token of an answer, here and in a child. Both kinds take turns within a second or two, and what
is printed is the median of the rounds' ratios, so that other programs on the machine hit both;
CPU seconds are those of the host and its child together.

``trial`` prints what the first load of a file costs, which a child tries before: a process from
its start to a model that is ready, without a trial, with one, and with one that is remembered.

``kills`` holds a conversation while the child is killed at random moments of its load, its
prefill, its answers, its saves and restores; each time it must be an error in time, the turn must
be answered in the end as in one process, and no process may be left.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ggext import EngineDiedError, Model, Sampling
from ggext.demo import sample_text
from ggext.runtime.isolated import IsolatedHost

GREEDY = Sampling(temperature=0)
_TICK = os.sysconf("SC_CLK_TCK")
_START = (
    "import sys, time\n"
    "from ggext import Model\n"
    "with Model(sys.argv[1], context=2048, isolated=sys.argv[2] == 'True'):\n"
    "    print(time.monotonic(), flush=True)\n"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["cost", "trial", "kills"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.what == "cost":
        _print_cost(given)
    elif given.what == "trial":
        _print_trial(given)
    else:
        _kill(given)


def _print_cost(given: argparse.Namespace) -> None:
    print("| | in one process | isolated | difference |")
    print("|---|---:|---:|---:|")
    starts = [
        [_start(given.model, isolated) for isolated in (False, True)] for _ in range(9)
    ]
    for name, kind in (("start, s", 0), ("start, CPU s", 1)):
        pairs = [(a[kind], b[kind]) for a, b in starts]
        here, there = (statistics.median(column) for column in zip(*pairs, strict=True))
        extra = statistics.median(b - a for a, b in pairs)
        print(f"| {name} | {here:.3f} | {there:.3f} | {extra:+.3f} |")
    with (
        Model(given.model, context=2048) as inside,
        Model(given.model, context=2048, isolated=True) as isolated,
    ):
        rounds = [
            _round((inside, isolated), given.tokens, number)
            for number in range(given.rounds)
        ]
    for name, index in (("wall", 0), ("CPU", 1)):
        pairs = [(a[index], b[index]) for a, b in rounds]
        here, there = (
            statistics.median(column) * 1e3 for column in zip(*pairs, strict=True)
        )
        ratio = sorted(b / a for a, b in pairs)
        middle = statistics.median(ratio)
        spread = f"{ratio[len(ratio) // 4]:.3f} to {ratio[-1 - len(ratio) // 4]:.3f}"
        print(
            f"| token, {name} ms | {here:.2f} | {there:.2f} | × {middle:.3f} ({spread}) |"
        )


def _start(path: Path, isolated: bool, **environment: str) -> tuple[float, float]:
    """Wall seconds until a model is ready; CPU seconds to the end, those of a child included."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _START, str(path), str(isolated)],
        stdout=subprocess.PIPE,
        env=os.environ | {"GGEXT_FIRST_LOAD": "here"} | environment,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(done.stdout) - begun, cpu


def _print_trial(given: argparse.Namespace) -> None:
    rounds = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as cache:
            kept = {"GGEXT_FIRST_LOAD": "", "XDG_CACHE_HOME": cache}
            without = _start(given.model, False)
            rounds.append(
                (without, *(_start(given.model, False, **kept) for _ in range(2)))
            )
    print("| | s | × without | CPU s | × without |")
    print("|---|---:|---:|---:|---:|")
    for name, index in (
        ("without a trial", 0),
        ("the first time", 1),
        ("the second time", 2),
    ):
        cells = [name]
        for kind in (0, 1):
            middle = statistics.median(each[index][kind] for each in rounds)
            ratio = statistics.median(
                each[index][kind] / each[0][kind] for each in rounds
            )
            cells += [f"{middle:.3f}", f"{ratio:.2f}"]
        print(f"| {' | '.join(cells)} |")


def _round(
    models: tuple[Model, Model], tokens: int, number: int
) -> list[tuple[float, float]]:
    """Wall and CPU seconds a token of each; who is first changes."""
    order = (0, 1) if number % 2 else (1, 0)
    results = {index: _timed(models[index], tokens, number) for index in order}
    return [results[0], results[1]]


def _timed(model: Model, tokens: int, seed: int) -> tuple[float, float]:
    question = [
        {"role": "user", "content": "Write a long story about a boat and the sea."}
    ]
    model.chat(question, max_tokens=0).text()
    cpu, begun = _cpu_seconds(model), time.perf_counter()
    reply = model.chat(question, sampling=Sampling(seed=seed), max_tokens=tokens)
    reply.text()
    wall = time.perf_counter() - begun
    return wall / reply.count, (_cpu_seconds(model) - cpu) / reply.count


def _cpu_seconds(model: Model) -> float:
    seconds = time.process_time()
    if isinstance(model._engine, IsolatedHost):
        stat = (
            Path(f"/proc/{model._engine.pid}/stat")
            .read_text()
            .rpartition(")")[2]
            .split()
        )
        seconds += (int(stat[11]) + int(stat[12])) / _TICK
    return seconds


class _Hunter:
    """Kills the child in one phase of a turn, at a moment that is even over how long it took."""

    def __init__(self, model: Model, seed: int) -> None:
        self.count: collections.Counter[str] = collections.Counter()
        self.pids: set[int] = set()
        self.longest = 0.0
        self._model = model
        self._rng = random.Random(seed)
        self._durations: dict[str, float] = {}
        self._phase = ""

    def choose(self) -> None:
        """The phase of the turn that follows in which it shoots."""
        self._phase = self._rng.choice(
            ("load and prefill", "answer", "save", "restore")
        )

    def chance(self) -> bool:
        return self._rng.random() < 0.5

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A phase, in which the shot may fall. Raises what it raises."""
        self.pids.add(_engine(self._model).pid)
        delay = self._rng.random() * self._durations.get(phase, 0.5)
        timer = threading.Timer(delay, self._shoot)
        if phase == self._phase:
            timer.start()
        begun = time.monotonic()
        try:
            yield
            self._durations[phase] = time.monotonic() - begun
        except EngineDiedError:
            self.count[f"died in {phase}"] += 1
            raise
        finally:
            self.longest = max(self.longest, time.monotonic() - begun)
            timer.cancel()
            self.pids.add(_engine(self._model).pid)

    def _shoot(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(_engine(self._model).pid, signal.SIGKILL)
            self.count["kills"] += 1
            self._phase = ""


def _kill(given: argparse.Namespace) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Model(given.model, context=2048, isolated=True) as model,
        Model(given.model, context=2048) as inside,
    ):
        hunter = _Hunter(model, given.seed)
        count = hunter.count
        turns: list[dict[str, str]] = []
        while count["kills"] < given.times:
            turns = turns[:4] if len(turns) < 4 else []
            text = f"{sample_text(150, count['turns'])}\nWhere is the map?"
            turns.append({"role": "user", "content": text})
            answer = _answered(model, turns, Path(folder, "kv"), hunter)
            expected = inside.chat(turns, sampling=GREEDY, max_tokens=12).text()
            count["turns"] += 1
            count["answers that differ"] += answer != expected
            turns.append({"role": "assistant", "content": answer})
    time.sleep(0.5)
    count["processes left"] = sum(map(_exists, hunter.pids))
    print(dict(count), f"longest phase {hunter.longest:.1f} s")
    sys.exit(bool(count["processes left"] or count["answers that differ"]))


def _answered(
    model: Model, turns: list[dict[str, str]], kept: Path, hunter: _Hunter
) -> str:
    """The answer to the last turn, asked until there is one; then its cache is saved, or not."""
    hunter.choose()
    while True:
        try:
            with hunter.during("load and prefill"):
                pieces = iter(model.chat(turns, sampling=GREEDY, max_tokens=12))
                answer = next(pieces, "")
            with hunter.during("answer"):
                answer += "".join(pieces)
            break
        except EngineDiedError:
            continue
    with suppress(EngineDiedError):
        if hunter.chance():
            with hunter.during("save"):
                model.save_cache(kept)
        if kept.exists() and hunter.chance():
            with hunter.during("restore"):
                model.restore_cache(kept)
    return answer


def _engine(model: Model) -> IsolatedHost:
    assert isinstance(model._engine, IsolatedHost)
    return model._engine


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
