"""Tokens a second that ggext generates, against a tight loop over llama.cpp's functions and against
`Llama`.

    python benchmarks/generate.py [MODEL.gguf] [--prompt 128] [--tokens 256] [--rounds 9] [--threads
    1]

One run, one file, the same threads, prompt and greedy sampling. The tight loop is a Python loop
around llama_decode and llama_sampler_sample with nothing else in it, in the better of its two
settings of flash attention. Each round lets every contestant write once, in a shuffled order; the
table gives the median, and the median of each round's ratio to the tight loop. Without MODEL it is
a random Llama of 0.94 M parameters, made here.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ggext
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.runtime import llama
from ggext.runtime.answering import Question
from ggext.runtime.engine import Model, Sampling, Session, SessionOptions
from ggext.runtime.worker import Worker

GREEDY = Sampling(temperature=0)
CONTEXT = 2048


class Task(NamedTuple):
    """What all write: ``tokens`` tokens behind ``prompt``, with ``threads``, in batches of
    ``batch``."""

    prompt: list[int]
    tokens: int
    threads: int
    batch: int


class Speed(NamedTuple):
    """Tokens a second, reading and writing."""

    read: float
    wrote: float


Contestant = Callable[[], Speed]


def random_llama(
    path: Path, width: int = 128, layers: int = 4, vocab: int = 512
) -> Path:
    """A Llama of 0.94 M random parameters; its tokens mean nothing, which is all the same to a
    clock."""
    rng = np.random.default_rng(0)
    ff, kv, head = 3 * width, width // 2, 32
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab, width),
        "output_norm.weight": (width,),
        "output.weight": (vocab, width),
    }
    for i in range(layers):
        layer = {
            "attn_norm": (width,),
            "ffn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (kv, width),
            "attn_v": (kv, width),
            "attn_output": (width, width),
            "ffn_gate": (ff, width),
            "ffn_up": (ff, width),
            "ffn_down": (width, ff),
        }
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    values = {
        name: rng.normal(0.0, 0.1, shape).astype("<f4")
        for name, shape in shapes.items()
    }
    values |= {
        name: np.ones(shape, "<f4") for name, shape in shapes.items() if "norm" in name
    }
    values["output.weight"][:259] = (
        0.0  # whole words are likelier: broken UTF-8 would slow `Llama` down
    )
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"▁{i}" for i in range(vocab - len(tokens))]
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": width,
        "llama.feed_forward_length": ff,
        "llama.block_count": layers,
        "llama.attention.head_count": width // head,
        "llama.attention.head_count_kv": kv // head,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.vocab_size": vocab,
        "llama.rope.dimension_count": head,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * vocab,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (vocab - 259),
    }
    parts = [
        TensorToWrite(
            name,
            array.shape[::-1],
            0,
            array.nbytes,
            lambda array=array: [array.tobytes()],
        )  # type: ignore[misc]
        for name, array in values.items()
    ]
    write_gguf(path, {key: Field.of(value) for key, value in keys.items()}, parts)
    return path


def tight_loop(model: Model, task: Task, flash: bool, stack: ExitStack) -> Contestant:
    """llama_decode and llama_sampler_sample, and nothing else."""
    import ctypes

    lib = llama.lib()
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, task.batch, task.batch
    params.n_threads = params.n_threads_batch = task.threads
    params.flash_attn_type = (
        lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if flash
        else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    context = lib.llama_init_from_model(model.open_handle(), params)
    stack.callback(lib.llama_free, context)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
    stack.callback(lib.llama_sampler_free, chain)
    memory = lib.llama_get_memory(context)

    def run() -> Speed:
        lib.llama_memory_clear(memory, False)
        start = time.perf_counter()
        for at in range(0, len(task.prompt), task.batch):
            part = task.prompt[at : at + task.batch]
            ids = (ctypes.c_int32 * len(part))(*part)
            lib.llama_decode(context, lib.llama_batch_get_one(ids, len(part)))
        one = (ctypes.c_int32 * 1)()
        batch = lib.llama_batch_get_one(one, 1)
        first = time.perf_counter()
        decode, sample = lib.llama_decode, lib.llama_sampler_sample
        one[0] = sample(chain, context, -1)
        for _ in range(task.tokens - 1):
            decode(context, batch)
            one[0] = sample(chain, context, -1)
        return speed(task, start, first)

    return run


def speed(task: Task, start: float, first: float) -> Speed:
    return Speed(
        len(task.prompt) / (first - start), task.tokens / (time.perf_counter() - first)
    )


def by_session(model: Model, task: Task, stack: ExitStack) -> Contestant:
    session = stack.enter_context(
        Session(model, SessionOptions(CONTEXT, task.threads, task.batch))
    )

    def run() -> Speed:
        session.clear()
        start = time.perf_counter()
        session.evaluate(task.prompt)
        first = time.perf_counter()
        count = sum(1 for _ in session.generate(GREEDY, task.tokens))
        assert count == task.tokens
        return speed(task, start, first)

    return run


def by_worker(model: Model, task: Task, stack: ExitStack) -> Contestant:
    session = stack.enter_context(
        Session(model, SessionOptions(CONTEXT, task.threads, task.batch))
    )
    worker = stack.enter_context(Worker([session]))

    def run() -> Speed:
        session.clear()
        start = time.perf_counter()
        answering = worker.ask(Question(task.prompt, GREEDY, task.tokens))
        first, count = 0.0, 0
        for _ in answering:
            first, count = first or time.perf_counter(), count + 1
        assert count == task.tokens
        return speed(task, start, first)

    return run


def by_model(path: Path, task: Task, stack: ExitStack) -> Contestant:
    """What a program gets: `ggext.Model`, text in and text out."""
    options = SessionOptions(threads=task.threads, n_batch=task.batch)
    model = stack.enter_context(
        ggext.Model(path, CONTEXT, settings=ggext.Settings(options, gpu_layers=0))
    )
    numbers = itertools.count()

    def run() -> Speed:
        words = f"{next(numbers):03} {'word ' * 999}"[
            : len(task.prompt) - 1
        ]  # another beginning: all of it is read
        start = time.perf_counter()
        reply = model.chat(
            [{"role": "user", "content": words}],
            sampling=GREEDY,
            max_tokens=task.tokens,
        )
        first = 0.0
        for _ in reply:
            first = first or time.perf_counter()
        assert reply.count == task.tokens
        return speed(task, start, first)

    return run


def by_llama(path: Path, task: Task, stack: ExitStack) -> Contestant:
    """llama-cpp-python's own class, streaming."""
    model = open_llama(path, task, stack)

    def run() -> Speed:
        model.reset()
        start = time.perf_counter()
        first, count = 0.0, 0
        for _ in model.create_completion(
            task.prompt,
            max_tokens=task.tokens,
            temperature=0,
            stream=True,
            repeat_penalty=1.0,
        ):
            first, count = first or time.perf_counter(), count + 1
        assert count >= task.tokens
        return speed(task, start, first)

    return run


def by_llama_tokens(path: Path, task: Task, stack: ExitStack) -> Contestant:
    """The same class's iterator over tokens, without text."""
    model = open_llama(path, task, stack)

    def run() -> Speed:
        model.reset()
        start = time.perf_counter()
        first, count = 0.0, 0
        for _ in model.generate(task.prompt, temp=0.0, repeat_penalty=1.0):
            first, count = first or time.perf_counter(), count + 1
            if count == task.tokens:
                break
        return speed(task, start, first)

    return run


def open_llama(path: Path, task: Task, stack: ExitStack) -> Any:
    from llama_cpp import Llama

    model = Llama(
        str(path),
        n_ctx=CONTEXT,
        n_batch=task.batch,
        n_threads=task.threads,
        n_threads_batch=task.threads,
        n_gpu_layers=0,
        verbose=False,
    )
    stack.callback(model.close)
    return model


def measure(path: Path, task: Task, rounds: int) -> dict[str, list[Speed]]:
    with ExitStack() as stack:
        model = stack.enter_context(Model.open(path, gpu_layers=0))
        contestants = {
            "tight loop, flash attention off": tight_loop(model, task, False, stack),
            "tight loop, flash attention on": tight_loop(model, task, True, stack),
            "ggext Session": by_session(model, task, stack),
            "ggext Worker, loop in another thread": by_worker(model, task, stack),
            "ggext.Model, text": by_model(path, task, stack),
            "Llama class, generate": by_llama_tokens(path, task, stack),
            "Llama class, streamed completion": by_llama(path, task, stack),
        }
        found: dict[str, list[Speed]] = {name: [] for name in contestants}
        for run in contestants.values():  # once, not counted
            run()
        order = random.Random(0)
        for _ in range(rounds):
            for name in order.sample(sorted(contestants), len(contestants)):
                found[name].append(contestants[name]())
    return found


def report(found: dict[str, list[Speed]]) -> str:
    loops = [name for name in found if name.startswith("tight")]
    best = max(loops, key=lambda name: statistics.median(s.wrote for s in found[name]))
    lines = [
        "| | reads, tokens/s | writes, tokens/s | × tight loop |",
        "| --- | --- | --- | --- |",
    ]
    for name, speeds in found.items():
        ratio = statistics.median(
            s.wrote / b.wrote for s, b in zip(speeds, found[best], strict=True)
        )
        read, wrote = (
            statistics.median(values) for values in zip(*speeds, strict=True)
        )
        lines.append(f"| {name} | {read:,.0f} | {wrote:,.0f} | {ratio:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path)
    for name, value in (
        ("prompt", 128),
        ("tokens", 256),
        ("rounds", 9),
        ("threads", 1),
        ("batch", 128),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or random_llama(Path(folder) / "random.gguf")
        task = Task(
            [3 + i % 250 for i in range(args.prompt)],
            args.tokens,
            args.threads,
            args.batch,
        )
        found = measure(path, task, args.rounds)
    print(
        f"{os.cpu_count()} CPUs, {args.threads} threads, {args.prompt} + {args.tokens} tokens, "
        f"{args.rounds} rounds"
    )
    print(report(found))


if __name__ == "__main__":
    main()
