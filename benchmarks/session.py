"""How long a session's restore from disk takes against the prefill that it saves.

    python benchmarks/session.py [--tokens 32768] [--model FILE.gguf] [--repeat 3]

Without a model it is the embedded one, baked to the length. Prints a Markdown table of medians.
Each restore reads the file, checks it, fills the cache, evaluates the last token and compares its
logits, in a new context. The restored logits behind 16 further tokens are compared with those of
the session that was read.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.rope.scaling import RopeScaling
from ggext.runtime import store
from ggext.runtime.engine import Model, Session, SessionOptions


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--kv", default="f16")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.model or _baked(Path(folder), given.tokens)
        _measure(path, Path(folder) / "kv.bin", given)


def _baked(folder: Path, tokens: int) -> Path:
    path = folder / "demo.gguf"
    convert(ConvertOptions(DEMO_MODEL, path, RopeScaling("yarn", factor=tokens / 256)))
    return path


def _measure(path: Path, state: Path, given: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    with Model.open(path) as model:
        text = rng.integers(1, model.n_vocab, given.tokens - 16).tolist()
        more = rng.integers(1, model.n_vocab, 16).tolist()

        def open_session() -> Session:
            return Session(model, SessionOptions(n_ctx=given.tokens, kv_type=given.kv))

        with open_session() as session:
            prefill = _timed(lambda: session.evaluate(text))
            key = store.session_key(session)
            save = _timed(lambda: store.save(state, session, key))
            session.evaluate([*text, *more])
            wanted = session.last_logits()
        cold: list[tuple[float, float]] = []
        warm: list[tuple[float, float]] = []
        for _ in range(given.repeat):
            for times, forget in ((cold, True), (warm, False)):
                if forget:
                    _drop_from_page_cache(state)
                with open_session() as session:
                    times.append(_timed(lambda s=session: store.restore(state, s, key)))
                    session.evaluate([*text, *more])
                    assert np.array_equal(session.last_logits(), wanted)
        rows = {
            "prefill": prefill,
            "save": save,
            "restore, file in memory": _median(warm),
            "restore, file on disk": _median(cold),
        }
        print(
            f"{model.description}, {len(text):,} tokens, KV {given.kv}, state "
            f"{state.stat().st_size:,} bytes;"
        )
        print("16 more tokens behind the restored cache: logits equal bit for bit\n")
        print(
            "| what | seconds | CPU seconds | × the prefill's speed | by CPU time "
            "|\n|---|---:|---:|---:|---:|"
        )
        for name, (wall, cpu) in rows.items():
            print(
                f"| {name} | {wall:.4g} | {cpu:.4g} | {prefill[0] / wall:,.0f} | "
                f"{prefill[1] / cpu:,.0f} |"
            )


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of this process on the CPU: what they would be on a machine that does
    nothing else."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def _median(times: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(wall for wall, _ in times), statistics.median(
        cpu for _, cpu in times
    )


def _drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
