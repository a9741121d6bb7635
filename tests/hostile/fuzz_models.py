"""Damages models in one or two valid-looking ways and uses them: no file may end the process.

    python tests/hostile/fuzz_models.py SECONDS SEED FOLDER [ARCHITECTURE...]

Every other file is wide: its rows are whole blocks of every quantized type. Each is quantized to a
type that is drawn, with an importance matrix or without, and what came of it is used like the file.
Children do the work, many files each, within limits of memory and time. Each is an interpreter of
its own: `verify` computes with OpenMP, whose threads are not there after a fork. They try the first
line of defence alone, what is refused before llama.cpp sees it. A child that dies names the file,
which is kept in FOLDER with a line in deaths.jsonl, and is tried again with the second line, the
first load in a process of its own: only a file that ends the process then is a death of the host.
Exit code 1: there was one, or an error that is none of ggext's.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from hostile import mutations  # noqa: E402
from hostile.mutations import Draft  # noqa: E402

from ggext.errors import GgextError, GgufError  # noqa: E402

_MEMORY = (
    6 << 30
)  # bytes of address space that a child may have more than it begins with
_CPU, _WALL = 30, 200  # seconds a file; IQ1_M alone takes some
_FILES_A_CHILD = 200
_VERIFIED_TOKENS = 8
_WORK = "--work"
#: Quantizations that ggext makes by itself, or that are none.
WHOLE = {"F32", "F16", "BF16", "Q8_0"}
_TEXTS = (
    "hello world, 12345 it's\n\n  a test\t—ünï 你好 🎉",
    "",
    "\x00\x01\xff",
    " " * 50,
    "<s></s><|im_end|>",
    "a" * 300,
)


@dataclass(frozen=True)
class Case:
    """One file: the model that it was made from, and the seed and number that it is drawn by."""

    base: str
    seed: int
    index: int

    def draft(self, base: Draft) -> tuple[str, Draft]:
        draw = random.Random(f"{self.seed}/{self.base}/{self.index}")
        count = draw.choice((1, 1, 2))
        return mutations.mutated(base, draw, count)

    def quantization(self, draft: Draft) -> Quantization:
        from ggext.runtime.llama import quantizations

        draw = random.Random(f"{self.seed}/{self.base}/{self.index}/quantized")
        kind = draw.choice([name for name in quantizations() if name not in WHOLE])
        return Quantization(
            kind, importance(draft, draw) if draw.random() < 0.6 else b""
        )


@dataclass(frozen=True)
class Quantization:
    """What a file is quantized to, and the importance matrix for it; none where empty."""

    type: str
    importance: bytes


@dataclass
class Outcome:
    """How many files ended how, and what each death was. ``missed``: what the first line let
    through and the second held."""

    counts: Counter[str] = field(default_factory=Counter)
    deaths: list[dict[str, object]] = field(default_factory=list)
    missed: list[dict[str, object]] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return sum(self.counts.values())


def importance(draft: Draft, draw: random.Random) -> bytes:
    """An importance matrix in llama.cpp's older form, for every matrix of the file: plausible, or
    with numbers that no model has."""
    import numpy as np

    generator = np.random.default_rng(draw.randrange(2**32))
    scale, entries = draw.choice((1.0, 1.0, 0.0, 1e-40, 1e30, -1.0)), []
    for name, tensor in draft.tensors.items():
        if len(tensor.shape) > 1:
            columns = tensor.shape[0] * (
                tensor.shape[2] if len(tensor.shape) > 2 else 1
            )
            means = (scale * generator.exponential(size=min(columns, 1 << 16))).astype(
                "<f4"
            )
            label = name.encode("utf-8", "surrogateescape")
            head = (
                struct.pack("<i", len(label))
                + label
                + struct.pack("<ii", 1, means.size)
            )
            entries.append(head + means.tobytes())
    return struct.pack("<i", len(entries)) + b"".join(entries) + struct.pack("<i", 1)


def look(path: Path, quantization: Quantization) -> None:
    """Does what the commands do with a file: inspect, plan, verify, convert (llama.cpp quantizes
    then), in place too. What was quantized is used."""
    from ggext.convert import ConvertOptions, convert
    from ggext.gguf.inplace import undo
    from ggext.inspect import inspect
    from ggext.plan import PlanOptions, plan
    from ggext.rope.scaling import RopeScaling
    from ggext.verify import verify

    out, quantized = path.with_suffix(".out"), path.with_suffix(".quantized")
    yarn, matrix = RopeScaling("yarn", factor=4), None
    if quantization.importance:
        matrix = path.with_suffix(".imatrix")
        matrix.write_bytes(quantization.importance)
    to_quantized = ConvertOptions(
        path, quantized, type=quantization.type, imatrix=matrix
    )
    for command in (
        lambda: inspect(path).as_dict(),
        lambda: plan(path, PlanOptions(64)),
        lambda: verify(path, tokens=_VERIFIED_TOKENS),
        lambda: convert(ConvertOptions(path, out, yarn)),
        lambda: convert(to_quantized),
        lambda: use(quantized),
        lambda: convert(ConvertOptions(path, None, yarn, in_place=True)),
        lambda: undo(path),
    ):
        with contextlib.suppress(GgextError):
            command()
    for made in (out, quantized, path.with_suffix(".imatrix")):
        made.unlink(missing_ok=True)


def attempt(path: Path, quantization: Quantization) -> None:
    """All that is done with a file. Raises GgextError."""
    look(path, quantization)
    use(path)


def use(path: Path) -> None:
    """Does what a chat does. Raises GgextError."""
    from ggext.runtime.engine import MemoryOptions, Model, SessionOptions
    from ggext.runtime.memory.options import POLICIES

    with Model.open(path, 0) as model:
        tokens = [
            token
            for text in _TEXTS
            for special in (False, True)
            for token in _allowed(
                lambda t=text, s=special: model.tokenize(t, parse_special=s), []
            )
        ]
        _ = model.description, model.chat_template, model.adds_bos, model.bos, model.eos
        for token in {0, 1, 2, 3, model.n_vocab // 2, model.n_vocab - 1}:
            model.token_to_piece(token)
            model.token_text(token)
        tokens = [*tokens[:40], *(i % model.n_vocab for i in range(3, 30))]
        policy = POLICIES[
            path.stat().st_size // 32 % len(POLICIES)
        ]  # any, but for a file one
        for options in (
            SessionOptions(n_ctx=64, threads=1, n_batch=32),
            SessionOptions(n_ctx=64, threads=1, n_batch=32, kv_type="q8_0"),
            SessionOptions(
                n_ctx=64, threads=1, n_batch=32, memory=MemoryOptions("stream")
            ),
            SessionOptions(
                n_ctx=64,
                threads=1,
                n_batch=32,
                memory=MemoryOptions(policy, group=4),
            ),
        ):
            with contextlib.suppress(GgextError):
                _talk(model, options, tokens)


def _allowed(call: object, otherwise: object) -> object:
    try:
        return call()  # type: ignore[operator]
    except GgextError:
        return otherwise


def _talk(model: object, options: object, tokens: list[int]) -> None:
    from ggext.runtime.engine import Sampling, Session

    with Session(model, options) as session:  # type: ignore[arg-type]
        session.evaluate(tokens[:50])
        for sampling in (
            Sampling(temperature=0),
            Sampling(seed=1, repeat_penalty=1.3, top_k=0, top_p=1, min_p=0),
            Sampling(seed=2, grammar="root ::= [a-z ]+"),
        ):
            for _ in session.generate(sampling, 3):
                pass
        session.evaluate(tokens[:10] + tokens[3:12])
        with contextlib.suppress(GgextError):
            session.snapshot()
        session.evaluate((tokens[:5] * 13)[: 3 * 32])


_FIRST_LOAD = "GGEXT_FIRST_LOAD"
Attempt = Callable[[Path, Quantization], None]


@dataclass(frozen=True)
class Work:
    """What a child is asked for: `attempt` is a function as ``package.module:name``."""

    bases: Mapping[str, Draft]
    folder: Path
    attempt: str = "hostile.fuzz_models:attempt"

    def start(
        self, cases: Sequence[Case], report: int, noise: int, *, alone: bool
    ) -> subprocess.Popen[bytes]:
        """A child that does the cases and writes to `report` what came of each. ``alone``: with
        the first line of defence alone."""
        bases = self.folder / "bases.pickle"
        if not bases.exists():
            bases.write_bytes(pickle.dumps(dict(self.bases)))
        asked = [
            self.attempt,
            str(report),
            json.dumps([astuple(case) for case in cases]),
        ]
        # A debugger for each death would take long; a thread is enough for tiny models.
        environment = os.environ | {"GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
        environment.pop(_FIRST_LOAD, None)
        if alone:
            environment[_FIRST_LOAD] = "here"
        return subprocess.Popen(
            [sys.executable, __file__, _WORK, str(self.folder), *asked],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=noise,
            stderr=noise,
            pass_fds=[report],
        )


def _work(folder: Path, attempt: str, report: int, cases: Sequence[Case]) -> None:
    """A child's life: each case is announced, done, and its outcome said."""
    bases = pickle.loads((folder / "bases.pickle").read_bytes())
    module, _, name = attempt.partition(":")
    function: Attempt = getattr(import_module(module), name)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = _MEMORY + pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = folder / f"{os.getpid()}.gguf"
    warnings.simplefilter("error", RuntimeWarning)  # NumPy's, which a user would see
    for case in cases:
        used = int(time.process_time()) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (used + _CPU, resource.RLIM_INFINITY))
        os.write(report, f"{case.index} {case.base}\n".encode())
        outcome = _outcome(case, bases[case.base], path, function)
        os.write(report, f"={outcome}\n".encode())
    path.unlink(missing_ok=True)


def _outcome(case: Case, base: Draft, path: Path, function: Attempt) -> str:
    try:
        _, draft = case.draft(base)
        mutations.write(path, draft)
    except (GgufError, ValueError, OverflowError):
        return "unwritable"
    try:
        function(path, case.quantization(draft))
    except GgextError as error:
        return "refused" if "\n" not in str(error) else f"two lines: {error!r:.300}"
    except MemoryError:
        return "memory"
    except Exception as error:  # noqa: BLE001 - the fuzzer reports it
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"error: {error!r:.300} {where.filename}:{where.lineno}".replace(
            "\n", " "
        )
    return "used"


def run(
    cases: Iterator[Case],
    bases: Mapping[str, Draft],
    folder: Path,
    seconds: float,
    attempt: str = Work.attempt,
) -> Outcome:
    """Tries cases until they or the time are over. ``attempt``: as in `Work`."""
    folder.mkdir(parents=True, exist_ok=True)
    outcome, end = Outcome(), time.monotonic() + seconds
    scratch = Path(
        tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    )
    work, waiting = Work(bases, scratch, attempt), list[Case]()
    try:
        while time.monotonic() < end:
            while len(waiting) < _FILES_A_CHILD and (case := next(cases, None)):
                waiting.append(case)
            if not waiting:
                break
            done, death = _child(waiting, work, outcome, end)
            if death:
                _keep(waiting[done], death, work, folder, outcome)
                done += 1
            waiting = waiting[done:]
    finally:
        shutil.rmtree(scratch)
    with (folder / "runs.jsonl").open("a") as file:
        file.write(
            json.dumps({"counts": outcome.counts, "tried": outcome.tried}) + "\n"
        )
    return outcome


def _child(
    cases: list[Case], work: Work, outcome: Outcome, end: float
) -> tuple[int, str]:
    """How many cases a new child did, and how it ended; empty: well."""
    reader, writer = os.pipe()
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    noise = os.open(work.folder / "stderr", flags, 0o600)
    child = work.start(cases, writer, noise, alone=True)
    os.close(writer)
    done, buffer, started, reason = 0, b"", time.monotonic(), ""
    while True:
        if select.select([reader], [], [], 1.0)[0]:
            data = os.read(reader, 1 << 16)
            if not data:
                break
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                started = time.monotonic()
                if line.startswith(b"="):
                    kind = line[1:].decode("utf-8", "replace")
                    if kind.startswith(("error", "two lines", "memory")):
                        outcome.deaths.append({"kind": kind, "case": repr(cases[done])})
                        kind = kind.split(":")[0]
                    outcome.counts[kind] += 1
                    done += 1
            if time.monotonic() > end:
                child.kill()
                reason = "over"
        elif time.monotonic() - started > _WALL:
            child.kill()
            reason = "hang"
    os.close(reader)
    status = child.wait()
    os.lseek(noise, 0, 0)
    said = os.read(noise, 1 << 16).decode("utf-8", "replace").strip()[-500:]
    os.close(noise)
    if reason == "over" or not status:
        return done, ""
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    return done, f"{reason or how}: {said}"


def _keep(case: Case, death: str, work: Work, folder: Path, outcome: Outcome) -> None:
    label, draft = case.draft(work.bases[case.base])
    path = folder / f"{case.base}-{case.seed}-{case.index}.gguf"
    mutations.write(path, draft)
    held = _second_line_holds(case, work)
    label = f"{label}, to {case.quantization(draft).type}"
    entry = {"file": path.name, "label": label, "death": death, "held": held}
    with (folder / "deaths.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    outcome.counts["held by the second line" if held else death.split(":")[0]] += 1
    (outcome.missed if held else outcome.deaths).append(entry)


def _second_line_holds(case: Case, work: Work) -> bool:
    """Whether a program that opens the file as usual, and uses it, lives on."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        return not work.start([case], null, null, alone=False).wait()
    finally:
        os.close(null)


def architectures() -> list[str]:
    """Those that ggext writes or plans, as far as a tiny model of each can be made here."""
    from tiny_gguf import FAMILIES, WRITTEN

    return sorted({*FAMILIES, *WRITTEN})


def bases_of(names: Sequence[str]) -> dict[str, Draft]:
    """Two models of each architecture: one whose rows are too short for most quantized types, and
    one whose rows are not."""
    from tiny_gguf import WIDE, base_of

    bases = {}
    for name in names:
        bases[name] = mutations.draft_of(name, *base_of(name))
        bases[f"{name}-wide"] = mutations.draft_of(name, *base_of(name, size=WIDE))
    return bases


def drawn(names: Iterable[str], seed: int) -> Iterator[Case]:
    """The models in turn, without end."""
    names = list(names)
    index = 0
    while True:
        yield from (Case(name, seed, index) for name in names)
        index += 1


def main() -> int:
    if sys.argv[1] == _WORK:
        cases = [Case(*fields) for fields in json.loads(sys.argv[5])]
        _work(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), cases)
        return 0
    seconds, seed, folder = float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    names = sys.argv[4:] or architectures()
    bases = bases_of(names)
    outcome = run(drawn(bases, seed), bases, folder, seconds)
    counts = ", ".join(
        f"{count:,} {kind}" for kind, count in outcome.counts.most_common()
    )
    sys.stdout.write(f"seed {seed}: {outcome.tried:,} files, {counts}\n")
    for death in (*outcome.missed, *outcome.deaths):
        sys.stdout.write(f"{death}\n")
    return 1 if outcome.deaths else 0


if __name__ == "__main__":
    sys.exit(main())
