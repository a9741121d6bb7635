"""Eight threads hammer one model with questions, and cancel at random: right answers, memory, time
to stop.

    python benchmarks/threads.py [--seconds 300] [--threads 8] [--parallel 2]

The embedded model, greedy; each answer that was not cancelled is compared with the one that a
single thread got, each cancelled one with its beginning. Also how long a cancel takes: in a prefill
of ordinary batches, in one of a single batch, and in answers.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

from memory import resident

from ggext import Model, Reply, Sampling, SessionOptions, Settings
from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.demo import sample_text
from ggext.rope.scaling import RopeScaling

GREEDY = Sampling(temperature=0)
THINGS = "map oar lamp drum kettle anchor bottle crown".split()


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


class Hammer:
    """What the threads share: questions, their right answers, and counts."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.questions = [
            user(f"{sample_text(300, seed)}\nWhere is the {thing}?")
            for seed, thing in enumerate(THINGS)
        ]
        self.right = [self.answer(question) for question in self.questions]
        self.whole = self.cancelled = 0
        self.wrong: list[object] = []
        self.lock = threading.Lock()

    def answer(self, question: list[dict[str, str]]) -> str:
        return self.model.chat(question, sampling=GREEDY, max_tokens=48).text()

    def run(self, number: int, until: float) -> None:
        rng = random.Random(number)
        while time.monotonic() < until and not self.wrong:
            try:
                self.once(rng)
            except BaseException as error:  # noqa: BLE001 - reported at the end
                self.wrong.append(repr(error))

    def once(self, rng: random.Random) -> None:
        index = rng.randrange(len(self.questions))
        reply = self.model.chat(self.questions[index], sampling=GREEDY, max_tokens=48)
        if rng.random() < 0.4:
            time.sleep(rng.random() * 0.05)
            reply.cancel()
        text, right = reply.text(), self.right[index]
        cancelled = reply.finish == "cancelled"
        with self.lock:
            self.cancelled += cancelled
            self.whole += not cancelled
            if text != right and not (cancelled and right.startswith(text)):
                self.wrong.append((index, text, reply.finish))


def hammer(path: Path, seconds: float, threads: int, parallel: int) -> None:
    with Model(path, context=1024, settings=Settings(parallel=parallel)) as model:
        shared = Hammer(model)
        until = time.monotonic() + seconds
        workers = [
            threading.Thread(target=shared.run, args=(number, until))
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        print(
            "| seconds | answers | cancelled | wrong | resident, MiB |\n| --- | --- | --- | --- | "
            "--- |"
        )
        for i in range(1, 11):
            time.sleep(max(until - seconds * (10 - i) / 10 - time.monotonic(), 0))
            counts = f"{shared.whole:,} | {shared.cancelled:,} | {len(shared.wrong)}"
            print(
                f"| {seconds * i / 10:.0f} | {counts} | {resident():.1f} |", flush=True
            )
        for worker in workers:
            worker.join()
        print(*shared.wrong, sep="\n")


def cancelling(path: Path, batch: int | None, rounds: int = 30) -> None:
    """Milliseconds from `cancel` to the end of the answer."""
    rng = random.Random(0)
    reading, writing = [], []
    with Model(
        path, settings=Settings(SessionOptions(n_batch=batch, threads=1))
    ) as model:
        for seed in range(rounds):
            reply = model.chat(user(sample_text(1900, seed)), sampling=GREEDY)
            time.sleep(0.01 + rng.random() * 0.05)
            reading.append(stop(reply))
            reply = model.chat(
                user("The dog"), sampling=Sampling(temperature=5, seed=seed)
            )
            next(iter(reply))
            writing.append(stop(reply))
    where = (
        "a prompt of 1,900 tokens"
        if batch is None
        else f"one batch of {batch:,} tokens"
    )
    for name, values in ((where, reading), ("an answer", writing)):
        print(
            f"cancel in {name}: median {statistics.median(values):.1f} ms, worst {max(values):.1f} "
            f"ms of {rounds}"
        )


def stop(reply: Reply) -> float:
    start = time.perf_counter()
    reply.cancel()
    reply.text()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("seconds", 300), ("threads", 8), ("parallel", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.gguf"
        convert(ConvertOptions(DEMO_MODEL, path, RopeScaling("yarn", factor=8)))
        cancelling(path, None)
        cancelling(path, 2048)
        print()
        hammer(path, args.seconds, args.threads, args.parallel)


if __name__ == "__main__":
    main()
