"""How long a scaling takes to get into a GGUF file: ggext in place, upstream's tools, llama.cpp's
quantizer, and cp.

    python benchmarks/bake.py [--gb 1.9] [--rounds 5] [--folder DIR]

The file is a random Llama in Q8_0 with a vocabulary of 151,936 tokens, its data where the header
happens to end, as llama.cpp writes it. Every contestant is a command, timed from its start to its
end, Python's own start included; each round runs all of them once, in turn, with the file cached
and the disk synced before. The table gives medians (processor time too, which does not depend on
what else the machine does) and the peak of resident memory. What is not installed is left out, with
the reason. Last, 50 GB that are nearly all holes."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

WRITER = str(Path(__file__).with_name("large_gguf.py"))
GGEXT = str(Path(sys.executable).with_name("ggext"))
RESIDENT = (
    8 << 30
)  # files below this are read into the page cache before each contestant
COPY = """
import ctypes, llama_cpp, sys
params = llama_cpp.llama_model_quantize_default_params()
params.only_copy = True
source, target = (path.encode() for path in sys.argv[1:])
sys.exit(llama_cpp.llama_model_quantize(source, target, ctypes.byref(params)))
"""
INSIDE = """
import statistics, sys, time
from pathlib import Path
from ggext.convert import ConvertOptions, execute, plan
from ggext.gguf.inplace import undo
from ggext.rope.scaling import RopeScaling
model, times, busy = Path(sys.argv[1]), [], []
for _ in range(11):
    start, processor = time.perf_counter(), time.process_time()
    execute(plan(ConvertOptions(model, rope=RopeScaling("yarn", factor=4), in_place=True)))
    times.append(time.perf_counter() - start), busy.append(time.process_time() - processor)
    undo(model)
print(f"Python's start not counted, room is made, 11 times: {statistics.median(times):.3f} s, "
      f"{statistics.median(busy):.3f} s of processor time, the fastest {min(times):.3f} s")
"""


class Contestant(NamedTuple):
    """``restore``: what makes the next contestant find the file as it was."""

    name: str
    command: list[str]
    restore: Callable[[], object] = lambda: None


def contestants(model: Path, out: Path) -> list[Contestant]:
    def remove() -> None:
        out.unlink()

    python = [sys.executable, "-c"]
    script = [sys.executable, "-m"]
    to_new_file = [GGEXT, "convert", str(model), str(out), "--yarn", "4"]
    in_place = [GGEXT, "convert", str(model), "--in-place", "--yarn"]
    found = [
        Contestant(
            "Python and its imports alone",
            [*python, "import ggext.cli.convert, ggext.convert, gguf"],
        ),
        Contestant("ggext convert --in-place, room is made", [*in_place, "4"]),
        Contestant("ggext convert --in-place again, room is there", [*in_place, "2"]),
        Contestant("ggext undo of both", [GGEXT, "undo", str(model)]),
        Contestant("ggext convert to a new file", to_new_file, remove),
        Contestant(
            "gguf-set-metadata: one number, in place",
            [
                *script,
                "gguf.scripts.gguf_set_metadata",
                str(model),
                "llama.context_length",
                "8192",
                "--force",
            ],
        ),
        Contestant(
            "gguf-new-metadata: a new file",
            [
                *script,
                "gguf.scripts.gguf_new_metadata",
                "--general-name",
                "x",
                str(model),
                str(out),
            ],
            remove,
        ),
        Contestant("cp", ["cp", str(model), str(out)], remove),
        Contestant(
            "cp, synced",
            ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", str(model), str(out)],
            remove,
        ),
        Contestant("ggext inspect", [GGEXT, "inspect", str(model)]),
    ]
    if importlib.util.find_spec("llama_cpp"):
        copy = Contestant(
            "llama.cpp's quantizer, COPY", [*python, COPY, str(model), str(out)], remove
        )
        found.insert(-3, copy)
    else:
        print("llama.cpp's quantizer is left out: llama-cpp-python is not installed\n")
    return found


def measure(contestant: Contestant, model: Path) -> tuple[float, float, int]:
    """Seconds on the clock, seconds of processor time, and peak resident bytes."""
    with model.open(
        "rb"
    ) as file:  # moving extents drops cached pages; all find the same
        while model.stat().st_size < RESIDENT and file.read(1 << 20):
            pass
    os.sync()
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen(contestant.command, stdout=output, stderr=output)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            sys.exit(f"{contestant.name} failed: {output.read().decode()[-2000:]}")
    contestant.restore()
    resident = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return seconds, usage.ru_utime + usage.ru_stime, resident


def report(chosen: list[Contestant], model: Path, rounds: int) -> None:
    times: dict[str, list[float]] = {c.name: [] for c in chosen}
    processor: dict[str, list[float]] = {c.name: [] for c in chosen}
    memory = dict.fromkeys(times, 0)
    for _ in range(rounds):
        for contestant in chosen:
            seconds, busy, resident = measure(contestant, model)
            times[contestant.name].append(seconds)
            processor[contestant.name].append(busy)
            memory[contestant.name] = max(memory[contestant.name], resident)
    print(
        "| | seconds, median | fastest to slowest | of processor time | peak resident, MB "
        "|\n|---|---|---|---|---|"
    )
    for name, seconds in times.items():
        print(
            f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to "
            f"{max(seconds):.2f} "
            f"| {statistics.median(processor[name]):.2f} | {memory[name] / 1e6:,.0f} |"
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--gb", type=float, default=1.9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ggext-bake-", dir=arguments.folder))
    try:
        model = folder / "model.gguf"
        # another process: what this one has resident would count as its children's
        subprocess.run([sys.executable, WRITER, model, str(arguments.gb)], check=True)
        print(f"{model.stat().st_size:,} bytes, {arguments.rounds} rounds\n")
        report(contestants(model, folder / "out.gguf"), model, arguments.rounds)
        subprocess.run([sys.executable, WRITER, model, "50", "--sparse"], check=True)
        print(f"{model.stat().st_size:,} bytes, sparse\n")
        report(contestants(model, folder / "out.gguf")[:4], model, arguments.rounds)
        subprocess.run([sys.executable, "-c", INSIDE, model], check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
