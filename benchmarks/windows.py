"""Layers with a sliding window: a small cache against one of every token, in speed, memory and what
an edit costs.

    python benchmarks/windows.py [--tokens 8192] [--batch 128] [--repeat 3] [--cells 4608]

The layers of Gemma 3 270M (18, of which 15 see 512 tokens) with random weights and a small
vocabulary. Both sessions read the same text, a batch in turn, and then write in turn; so whatever
else the machine does meets both. CPU time, medians. An edit is a cut of the text that is read, and
16 tokens behind it; the logits are compared with those of the cache of every token. Then the policy
stream reads the text into so many ``cells``, over windows of either kind.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ggext.footprint.cache import Swa
from ggext.footprint.planner import Choices, Memories
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.runtime import capacity
from ggext.runtime.engine import (
    MemoryOptions,
    Model,
    Sampling,
    Session,
    SessionOptions,
)
from ggext.runtime.memory.stream import Stream

LAYERS, WIDTH, HEADS, HEAD, FF, WINDOW, VOCABULARY = 18, 640, 4, 256, 2048, 512, 512
CHOICES: tuple[Swa, ...] = ("full", "small")


def random_gemma3(path: Path, context: int) -> Path:
    """About 100 M random parameters."""
    rng = np.random.default_rng(0)
    layer = {
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
        "post_attention_norm": (WIDTH,),
        "post_ffw_norm": (WIDTH,),
        "attn_q_norm": (HEAD,),
        "attn_k_norm": (HEAD,),
        "attn_q": (HEADS * HEAD, WIDTH),
        "attn_k": (HEAD, WIDTH),
        "attn_v": (HEAD, WIDTH),
        "attn_output": (WIDTH, HEADS * HEAD),
        "ffn_gate": (FF, WIDTH),
        "ffn_up": (FF, WIDTH),
        "ffn_down": (WIDTH, FF),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    shapes |= {
        f"blk.{i}.{name}.weight": shape
        for i in range(LAYERS)
        for name, shape in layer.items()
    }
    values = {
        name: rng.normal(0.0, 0.03, shape).astype("<f4")
        for name, shape in shapes.items()
    }
    values |= {
        name: np.ones(shape, "<f4") for name, shape in shapes.items() if "norm" in name
    }
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"▁{i}" for i in range(VOCABULARY - len(tokens))]
    numbers = {
        "context_length": context,
        "embedding_length": WIDTH,
        "feed_forward_length": FF,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
        "attention.sliding_window": WINDOW,
    }
    keys: dict[str, Any] = {
        f"gemma3.{key}": value for key, value in numbers.items()
    } | {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * VOCABULARY,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259),
    }
    parts = []
    for name, array in values.items():
        whole = array.ndim == 1
        data = (array if whole else array.astype("<f2")).tobytes()
        parts.append(
            TensorToWrite(
                name,
                array.shape[::-1],
                0 if whole else 1,
                len(data),
                lambda data=data: [data],
            )
        )  # type: ignore[misc]
    write_gguf(path, {key: Field.of(value) for key, value in keys.items()}, parts)
    return path


def measure(path: Path, tokens: int, batch: int, repeat: int) -> None:
    text = np.random.default_rng(1).integers(3, VOCABULARY, tokens).tolist()
    with Model.open(path) as model, ExitStack() as stack:
        sessions = {
            swa: stack.enter_context(
                Session(model, SessionOptions(n_ctx=tokens, n_batch=batch, swa=swa))
            )
            for swa in CHOICES
        }
        read, written = reading(sessions, text[:-256], batch), writing(sessions, repeat)
        print(
            f"{model.n_params / 1e6:.0f} M parameters, {tokens:,} tokens, {batch} at a time\n"
        )
        print(
            "| cells of a sliding layer | KV cache, MiB | copies, MiB | read, CPU ms a token | the "
            "last 1,024 | write |"
        )
        print("|---|---:|---:|---:|---:|---:|")
        for swa in CHOICES:
            room = capacity.room(model, Choices("f16", batch, swa=swa))
            assert room is not None
            share = room.planner.shares(room.planner.context(tokens, Memories(None)))[0]
            late = statistics.median(read[swa][-1024 // batch :]) / batch * 1e3
            print(
                f"| {swa} | {share.cache / 2**20:.1f} | {share.checkpoints / 2**20:.1f} | "
                f"{statistics.median(read[swa]) / batch * 1e3:.2f} | {late:.2f} | "
                f"{written[swa] * 1e3:.2f} |"
            )
        edits(sessions, text)


def reading(
    sessions: dict[Swa, Session], text: list[int], batch: int
) -> dict[Swa, list[float]]:
    """CPU seconds of each batch."""
    seconds: dict[Swa, list[float]] = {swa: [] for swa in sessions}
    running = {swa: session.steps(text) for swa, session in sessions.items()}
    for _ in range(0, len(text) + 1, batch):
        for swa, steps in running.items():
            start = time.process_time()
            next(steps, None)
            seconds[swa].append(time.process_time() - start)
    for steps in running.values():
        assert next(steps, None) is None
    return {
        swa: times[1:] for swa, times in seconds.items()
    }  # the first step only counts


def writing(sessions: dict[Swa, Session], repeat: int) -> dict[Swa, float]:
    """CPU seconds a token of an answer."""
    seconds: dict[Swa, list[float]] = {swa: [] for swa in sessions}
    for _ in range(repeat):
        for swa, session in sessions.items():
            start = time.process_time()
            said = sum(1 for _ in session.generate(Sampling(temperature=0), 32))
            seconds[swa].append((time.process_time() - start) / max(said, 1))
    return {swa: statistics.median(times) for swa, times in seconds.items()}


def edits(sessions: dict[Swa, Session], text: list[int]) -> None:
    print(
        "\n| after reading, cut to | full reads again | small reads again | worst logit apart, of "
        "the range |"
    )
    print("|---:|---:|---:|---:|")
    length = len(text) - 256
    for cut in (length - 1, length - 100, length - 1000, length // 2):
        evaluated, logits = {}, {}
        for swa, session in sessions.items():
            session.evaluate(text[:length])
            evaluated[swa] = session.evaluate([*text[:cut], *text[-16:]]).evaluated
            logits[swa] = session.last_logits()
        apart = np.abs(logits["full"] - logits["small"]).max() / np.ptp(logits["full"])
        print(
            f"| {cut:,} | {evaluated['full']:,} | {evaluated['small']:,} | {apart:.1e} |"
        )


def evictions(path: Path, tokens: int, batch: int, cells: int) -> None:
    """The text in fewer cells: what moving them costs, and whether both give the same."""
    text = np.random.default_rng(1).integers(3, VOCABULARY, tokens).tolist()
    memory = MemoryOptions("stream")
    seconds: dict[Swa, list[float]] = {swa: [] for swa in CHOICES}
    with Model.open(path) as model, ExitStack() as stack:
        sessions = {
            swa: stack.enter_context(
                Session(
                    model,
                    SessionOptions(n_ctx=cells, n_batch=batch, swa=swa, memory=memory),
                )
            )
            for swa in CHOICES
        }
        for swa, session in sessions.items():
            timed(session, seconds[swa])
        reading(sessions, text, batch)
        left = sessions["full"].dropped
        print(
            f"\nstream, {tokens:,} tokens in {cells:,} cells, {left:,} left\n\n"
            "| cells of a sliding layer | KV cache, MiB | an eviction, CPU ms |\n|---|---:|---:|"
        )
        for swa in CHOICES:
            room = capacity.room(model, Choices("f16", batch, swa=swa, moves=True))
            assert room is not None
            milliseconds = statistics.median(seconds[swa]) * 1e3
            print(f"| {swa} | {room.cache(cells) / 2**20:.1f} | {milliseconds:.0f} |")
        full, small = (sessions[swa].last_logits() for swa in CHOICES)
        apart = np.abs(full - small).max() / np.ptp(full)
        print(f"\nworst logit apart, of the range: {apart:.1e}")


def timed(session: Session, seconds: list[float]) -> None:
    """CPU seconds of each eviction."""
    memory = session.memory
    assert isinstance(memory, Stream)
    slide = memory.slide

    def measured(start: int, end: int) -> bool:
        before = time.process_time()
        try:
            return slide(start, end)
        finally:
            seconds.append(time.process_time() - before)

    memory.slide = measured  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cells", type=int, default=4608)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = random_gemma3(Path(folder) / "m.gguf", given.tokens)
        measure(path, given.tokens, given.batch, given.repeat)
        evictions(path, given.tokens, given.batch, given.cells)


if __name__ == "__main__":
    main()
