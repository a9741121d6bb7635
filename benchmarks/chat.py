"""What a seed costs, and how many threads a busy machine is worth: MODEL TEXT.

python benchmarks/chat.py smollm2.gguf sherlock.txt
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from ggext.footprint.machine import idle_cores
from ggext.runtime.engine import Model, Sampling, Session, SessionOptions


def seed(model: Model, text: str) -> None:
    """Logits after a cached text and its answer against those of an empty cache."""
    said_after = model.tokenize(" And what did he say to the king?", add_special=False)
    options = SessionOptions(n_ctx=4096)
    for repeatable in (False, True):
        with Session(model, options) as session, Session(model, options) as fresh:
            tokens = model.tokenize(text)
            session.evaluate(tokens)
            tokens += list(session.generate(Sampling(seed=1), 150))
            tokens += said_after
            prefill = session.evaluate(tokens, repeatable=repeatable)
            fresh.evaluate(tokens)
            apart = np.abs(session.last_logits() - fresh.last_logits()).max()
        print(
            f"repeatable {repeatable}: of {len(tokens)} tokens {prefill.evaluated} read, "
            f"logits off by {apart:.3g} at most"
        )


def threads(model: Model, text: str) -> None:
    """Tokens a second of an answer with one thread and with two."""
    print(f"cores that others leave idle: {idle_cores()}")
    tokens = model.tokenize(text)[:500]
    for count in (1, 2):
        with Session(model, SessionOptions(n_ctx=2048, threads=count)) as session:
            session.evaluate(tokens)
            start = time.perf_counter()
            made = len(list(session.generate(Sampling(temperature=0), 40)))
            print(
                f"{count} threads: {made / (time.perf_counter() - start):.1f} tokens a second"
            )


if __name__ == "__main__":
    with Model.open(Path(sys.argv[1])) as opened:
        book = Path(sys.argv[2]).read_text(encoding="utf-8")[3000:9000]
        seed(opened, book)
        threads(opened, book)
