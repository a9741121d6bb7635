"""What the policies for a full context cost and keep, at an equal cache, and how they hold out.

python benchmarks/memory.py needles MODEL.gguf TEXT [--length 2048] [--texts 0 1 2 ...]
    [--questions 5] [--records FILE] [--threads 1]
    a real model: needles in a book, several questions asked of the same cache
python benchmarks/memory.py follows MODEL.gguf TEXT [--length 1536] [--texts 24]
    a real model: perplexity of what follows a text that was compressed
python benchmarks/memory.py writing MODEL.gguf [--cells 8192]
    a real model: CPU time a written token over so many cells, and over a quarter of them
python benchmarks/memory.py book TEXT MODEL.gguf [--cache 256]
    perplexity of a long text, stream and recompute
python benchmarks/memory.py speed [--cache 4096]
    time a token once the cache is full
python benchmarks/memory.py ntk [--texts 20]
    dynamic NTK: rotated keys against a new evaluation
python benchmarks/memory.py endless [--tokens 1000000]
    memory and time of one answer that never ends
python benchmarks/memory.py million [--lengths 10000 30000 100000 300000 1000000] [--texts 2]
    landmark over a million tokens: recall, time and memory
python benchmarks/memory.py policies [MODEL.gguf TEXT] [--texts 0 1 2 3] [--records FILE]
    all policies in one table; without a model the embedded one, with --length 1500
python benchmarks/memory.py paraphrases MODEL.gguf TEXT
    landmark and the whole cache, asked in other words than the text's
python benchmarks/memory.py halves MODEL.gguf TEXT --records FILE
    a half of a text, chosen in eleven ways: answers, and perplexity of what follows
python benchmarks/memory.py pieces MODEL.gguf TEXT --records FILE [--part 0.25] [--ways NAME ...]
    compress: a text chosen from once, and again and again, in thirteen ways
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import numpy as np
from generate import random_llama
from halves import halves
from million import million, resident
from needles import needles
from paraphrases import paraphrases
from pieces import pieces
from policies import policies

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.data import demo_language as language
from ggext.footprint.cache import Swa
from ggext.quality.perplexity import nll
from ggext.quality.statistics import mean
from ggext.quality.texts import read_text
from ggext.rope.scaling import RopeScaling
from ggext.runtime.engine import MemoryOptions, Model, Sampling, Session, SessionOptions
from ggext.runtime.likelihood import scores
from ggext.runtime.memory import WhenFull
from ggext.runtime.memory.gone import Gone
from ggext.runtime.regimes import DynamicNtk

GREEDY = Sampling(temperature=0)
TEXT_TOKENS = 1500


def recall_samples(count: int) -> Iterator[language.RecallSample]:
    rng = random.Random("needles")
    for _ in range(count):
        facts = language.facts(rng, language.RECALL_FACTS)
        fact = rng.choice(facts)
        text = language.document(rng, facts, TEXT_TOKENS)
        yield language.RecallSample(
            text, language.question(fact.key), language.answer(fact.key, fact.place)
        )


def follows(path: Path, book: Path, length: int, texts: int) -> None:
    """256 tokens after texts of so many, each read once, over the whole cache and over shares of
    it. One thread."""
    losses: dict[float, list[float]] = {1.0: [], 0.5: [], 0.25: [], 0.125: []}
    words, scored = read_text(book), 256
    with Model.open(path, 0) as model:
        all_tokens = model.tokenize(words)
        step = (len(all_tokens) - length - scored) // texts
        options = SessionOptions(
            n_ctx=length + scored, threads=1, memory=MemoryOptions("compress")
        )
        with Session(model, options) as session:
            for number in range(texts):
                tokens = all_tokens[number * step :][: length + scored]
                session.evaluate(tokens[:length])
                whole = session.snapshot()
                for share, found in losses.items():
                    session.restore(tokens[:length], whole, [*range(length)], Gone())
                    session.compress(share)
                    parts = scores(session, tokens, length + 1)
                    found.append(float(np.concatenate([p.nll for p in parts]).mean()))
    print(
        f"{texts} texts of {length:,} tokens\n\n| cells | perplexity | × whole | 95 % |\n"
        "| --- | --- | --- | --- |"
    )
    for share, found in losses.items():
        apart = mean(np.subtract(found, losses[1.0]).tolist())
        print(
            f"| {int(share * length):,} | {math.exp(statistics.mean(found)):.2f} | "
            f"{math.exp(apart.value):.3f} | {math.exp(apart.low):.3f} to "
            f"{math.exp(apart.high):.3f} |"
        )


def writing(path: Path, cells: int, rounds: int) -> None:
    """One thread, rounds in turn, 32 tokens each; the median of the rounds. What stands in the
    cells is all the same to a clock: a few are copied to all."""
    ways = {"the whole cache": cells, "a quarter": cells // 4}
    found: dict[str, list[float]] = {name: [] for name in ways}
    with Model.open(path, 0) as model, ExitStack() as stack:
        sessions = {}
        for name, inside in ways.items():
            options = SessionOptions(
                n_ctx=inside + 64, threads=1, memory=MemoryOptions("stream")
            )
            sessions[name] = stack.enter_context(Session(model, options))
            filled(sessions[name], inside)
        for _ in range(rounds):
            for name, session in sessions.items():
                start = time.process_time()
                for token in range(100, 132):
                    session.memory.write(token)
                found[name].append((time.process_time() - start) / 32)
                session.memory.cut(len(session.cache.tokens) - 32)
    base = statistics.median(found["the whole cache"])
    print("| cells | CPU ms a token | × whole |\n| --- | --- | --- |")
    for name, each in found.items():
        middle = statistics.median(each)
        print(f"| {name} | {1000 * middle:.2f} | {middle / base:.2f} |")


def filled(session: Session, count: int) -> None:
    """So many cells in the cache."""
    cache = session.cache
    cache.append([*range(100, 132)])
    few = cache.take(0, 32)
    cache.clear()
    for first in range(0, count, 32):
        now = np.arange(first, min(first + 32, count), dtype=np.int32)
        cache.put(cache.rotation().moved(few.cells(slice(0, len(now))), now))
    cache.tokens, cache.positions = [100] * count, [*range(count)]


def book(text: Path, path: Path, cache: int, tokens: int) -> None:
    print(
        "| policy | kv | tokens | perplexity | seconds |\n| --- | --- | --- | --- | --- |"
    )
    with Model.open(path) as model:
        wanted = model.tokenize(text.read_text("utf-8"))[:tokens]
        for policy in ("stream", "recompute"):
            options = SessionOptions(n_ctx=cache, memory=MemoryOptions(policy))
            with Session(model, options) as session:
                start = time.perf_counter()
                value = math.exp(nll(session, wanted).mean())
                seconds = time.perf_counter() - start
                print(
                    f"| {policy} | {options.kv_type} | {len(wanted):,} | {value:.4f} | "
                    f"{seconds:.1f} |"
                )


def speed(cache: int, tokens: int) -> None:
    """Once the cache is full, ``tokens`` more, one at a time: by stream, by recompute with ggext's
    default of a quarter of the window at a time, and 3 by recompute with a window that slides by
    one, as StreamingLLM's baseline does. One thread, so its CPU time is the time that it takes,
    whatever else the machine does."""
    print(
        "| policy | leaves at once | CPU ms a token | × stream |\n| --- | --- | --- | --- |"
    )
    rows: list[tuple[WhenFull, int | None, int]] = [
        ("stream", None, tokens),
        ("recompute", None, tokens),
        ("recompute", 1, 3),
    ]
    base = 0.0
    with (
        tempfile.TemporaryDirectory() as folder,
        Model.open(random_llama(Path(folder) / "m.gguf", 256), 0) as model,
    ):
        for policy, evict, count in rows:
            options = SessionOptions(
                n_ctx=cache, threads=1, memory=MemoryOptions(policy, evict=evict)
            )
            with Session(model, options) as session:
                prompt = [259 + i % 250 for i in range(cache)]
                session.evaluate(prompt[: cache - 2])
                start = time.process_time()
                for i in range(count):  # one at a time, as an answer comes
                    session.memory.make_room(1)
                    session.memory.write(prompt[i])
                each = (time.process_time() - start) / count
            base = base or each
            print(
                f"| {policy} | {evict or session.memory.evict} | {1000 * each:.3f} | "
                f"{each / base:.1f} |"
            )


def ntk(texts: int) -> None:
    """The embedded model, trained on 256 tokens, reads texts of 1,000: what each way makes of the
    last 400."""
    lines = [
        (
            "| table | perplexity of the last 400 | mean KL from replay, nats | worst logit "
            "difference |"
        )
    ]
    lines.append("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.gguf"
        convert(ConvertOptions(DEMO_MODEL, path, RopeScaling("none")))
        with Model.open(path) as model:
            prompts = [
                f"{language.BOS}{language.USER}{sample.document}"
                for sample in recall_samples(texts)
            ]
            ids = [
                model.tokenize(text, add_special=False, parse_special=True)[:1000]
                for text in prompts
            ]
            ways: tuple[DynamicNtk | None, ...] = ("replay", "rotate", None)
            rows = {way: [tail(model, tokens, way) for tokens in ids] for way in ways}
    for way, found in rows.items():
        loss = statistics.mean(float(losses.mean()) for losses, _ in found)
        pairs = [(a, b) for (_, a), (_, b) in zip(rows["replay"], found, strict=True)]
        kl = statistics.mean(
            float((np.exp(a) * (a - b)).sum(axis=1).mean()) for a, b in pairs
        )
        worst = max(float(np.abs(a - b).max()) for a, b in pairs)
        lines.append(
            f"| {way or 'the file, not scaled'} | {math.exp(loss):.3f} | {kl:.1e} | {worst:.2f} |"
        )
    print(f"{texts} texts\n", *lines, sep="\n")


def tail(
    model: Model, tokens: list[int], way: DynamicNtk | None
) -> tuple[np.ndarray, np.ndarray]:
    """-log p of the last 400 tokens, and log p of everything behind each, float64.

    Token by token from 250 on, as an answer grows, so that both bases are passed through on the
    way.
    """
    rows = []
    with Session(
        model, SessionOptions(n_ctx=1024, kv_type="f32", dynamic_ntk=way)
    ) as session:
        session.evaluate(tokens[:250])
        for token in tokens[250:-1]:
            session.memory.write(token)
            pointer = session.cache.lib.llama_get_logits_ith(session.cache.handle, -1)
            rows.append(
                np.ctypeslib.as_array(pointer, (model.n_vocab,)).astype(np.float64)
            )
    logits = np.array(rows[-400:])
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -logits[np.arange(400), tokens[-400:]], logits


def endless(tokens: int, cache: int, path: Path | None) -> None:
    """One answer by stream: resident memory and time a token in tenths of the way."""
    with tempfile.TemporaryDirectory() as folder:
        path = path or random_llama(Path(folder) / "m.gguf", 64, 2)
        with Model.open(path, gpu_layers=0) as model:
            options = SessionOptions(
                n_ctx=cache, threads=1, memory=MemoryOptions("stream")
            )
            with Session(model, options) as session:
                print(f"{model.n_params:,} parameters, cache {cache}\n")
                print(
                    "| tokens | resident, MiB | CPU µs a token | µs a token |\n| --- | --- | --- | "
                    "--- |"
                )
                session.evaluate([300])
                done, part = 0, tokens // 10
                while done < tokens:
                    start, cpu, before = time.perf_counter(), time.process_time(), done
                    for _ in session.generate(Sampling(temperature=5, seed=done), part):
                        done += 1
                    if done == before:  # the model ended its answer
                        session.evaluate([*session.tokens[-1:], 300])
                        continue
                    each = (time.perf_counter() - start) / (done - before)
                    cpu = (time.process_time() - cpu) / (done - before)
                    print(
                        f"| {done:,} | {resident():.1f} | {1e6 * cpu:.1f} | {1e6 * each:.1f} |",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("needles")
    one.add_argument("path", type=Path)
    one.add_argument("book", type=Path)
    one.add_argument("--length", type=int, default=2048)
    one.add_argument("--texts", nargs="*", type=int, default=[*range(13)])
    one.add_argument("--questions", type=int, default=5)
    one.add_argument("--records", type=Path)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--shares", nargs="*", type=float, default=[0.5, 0.25, 0.125])
    one.add_argument("--outside", nargs="*", type=float, default=[0.125])
    one.add_argument("--policies", nargs="*", default=["landmark:0.5", "landmark:0.25"])
    one.add_argument("--swa", choices=get_args(Swa), default="auto")
    one = commands.add_parser("follows")
    one.add_argument("path", type=Path)
    one.add_argument("book", type=Path)
    one.add_argument("--length", type=int, default=1536)
    one.add_argument("--texts", type=int, default=24)
    one = commands.add_parser("writing")
    one.add_argument("path", type=Path)
    one.add_argument("--cells", type=int, default=8192)
    one.add_argument("--rounds", type=int, default=7)
    one = commands.add_parser("book")
    one.add_argument("text", type=Path)
    one.add_argument("path", type=Path)
    one.add_argument("--cache", type=int, default=256)
    one.add_argument("--tokens", type=int, default=20_000)
    one = commands.add_parser("speed")
    one.add_argument("--cache", type=int, default=4096)
    one.add_argument("--tokens", type=int, default=1023)
    one = commands.add_parser("ntk")
    one.add_argument("--texts", type=int, default=20)
    one = commands.add_parser("endless")
    one.add_argument("--tokens", type=int, default=1_000_000)
    one.add_argument("--cache", type=int, default=512)
    one.add_argument("--path", type=Path)
    one = commands.add_parser("million")
    one.add_argument(
        "--lengths",
        nargs="*",
        type=int,
        default=[10_000, 30_000, 100_000, 300_000, 1_000_000],
    )
    one.add_argument("--texts", type=int, default=2)
    one.add_argument("--bound", type=int, default=8 << 20)
    one.add_argument("--ways", nargs="*", default=["memory", "bound", "disk"])
    one = commands.add_parser("policies")
    one.add_argument("path", type=Path, nargs="?")
    one.add_argument("book", type=Path, nargs="?")
    one.add_argument("--length", type=int, default=2048)
    one.add_argument("--texts", nargs="*", type=int, default=[0, 1, 2, 3])
    one.add_argument("--records", type=Path)
    one = commands.add_parser("paraphrases")
    one.add_argument("path", type=Path)
    one.add_argument("book", type=Path)
    one.add_argument("--length", type=int, default=2048)
    one.add_argument("--texts", type=int, default=5)
    one = commands.add_parser("halves")
    one.add_argument("path", type=Path)
    one.add_argument("book", type=Path)
    one.add_argument("--length", type=int, default=1536)
    one.add_argument("--texts", nargs="*", type=int, default=[*range(10)])
    one.add_argument("--records", type=Path, required=True)
    one = commands.add_parser("pieces")
    one.add_argument("path", type=Path)
    one.add_argument("book", type=Path)
    one.add_argument("--length", type=int, default=2048)
    one.add_argument("--part", type=float, default=0.25)
    one.add_argument("--texts", nargs="*", type=int, default=[0, 1, 2, 3])
    one.add_argument("--ways", nargs="*", default=[])
    one.add_argument("--records", type=Path, required=True)
    arguments = vars(parser.parse_args())
    {
        "needles": needles,
        "follows": follows,
        "writing": writing,
        "book": book,
        "speed": speed,
        "ntk": ntk,
        "endless": endless,
        "million": million,
        "policies": policies,
        "halves": halves,
        "pieces": pieces,
        "paraphrases": paraphrases,
    }[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
