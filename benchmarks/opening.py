"""How long a model takes to be opened for the second time and later, beside another version.

python benchmarks/opening.py MODEL OTHER_PYTHON [--rounds 16]

Each round starts a new interpreter of each version, in turn: `Model.open` and a `Session` of 1,024
tokens. OTHER_PYTHON is the interpreter of an environment in which the other version is installed.
The figures are medians of each round's ratio; the first round, in which files are new to the page
cache, is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

_OPEN = """
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
from pathlib import Path
from ggext.runtime.engine import Model, Session, SessionOptions
model = Model.open(Path(sys.argv[1]))
Session(model, SessionOptions(n_ctx=1024))
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def opened(python: str, model: str) -> tuple[float, float]:
    """Seconds of wall time and of processor time; with the bytecode of the round before."""
    written = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [python, "-c", _OPEN, model],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env=written,
    )
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("other_python")
    parser.add_argument("--rounds", type=int, default=16)
    given = parser.parse_args()
    ratios: list[tuple[float, float]] = []
    for number in range(given.rounds):
        order = [given.other_python, sys.executable]
        times = {
            python: opened(python, given.model)
            for python in order[:: 1 if number % 2 else -1]
        }
        other, ours = (times[python] for python in order)
        ratios.append((ours[0] / other[0], ours[1] / other[1]))
    for i, name in enumerate(("wall", "processor")):
        low, middle, high = statistics.quantiles(
            [ratio[i] for ratio in ratios[1:]], n=4
        )
        print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
