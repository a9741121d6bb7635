"""What a side request costs a long chat: how much of the chat is read again in its next turn.

    python benchmarks/side_requests.py MODEL.gguf TEXT [--tokens 1810] [--rounds 3] [--threads 1]

A long question of so many tokens, a request for its title, the next turn of the long chat: as a
desktop program sends them. With and without texts kept in host memory, with one context and with
two. Seconds until the first token of the next turn, median of the rounds, which take turns; each
opens the model again. The answers of the long chat must be the same in all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from ggext import Model, PrefixOptions, Sampling, SessionOptions, Settings

GREEDY = Sampling(temperature=0)
KINDS = {
    "nothing kept, 1 context": Settings(cache=PrefixOptions(memory=0)),
    "nothing kept, 2 contexts": Settings(cache=PrefixOptions(memory=0), parallel=2),
    "kept, 1 context": Settings(),
    "kept, 2 contexts": Settings(parallel=2),
}


class Turn(NamedTuple):
    """The next turn of the long chat: tokens of it that were reused, and in all; seconds to its
    first token; its text."""

    reused: int
    total: int
    seconds: float
    text: str


def shortened(model: Model, text: str, tokens: int) -> str:
    """The beginning of a text, of so many tokens as a message."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = model.count_chat(text[:middle]) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[:low]


def asked(path: Path, text: str, args: argparse.Namespace, settings: Settings) -> Turn:
    options = SessionOptions(threads=args.threads)
    settings = Settings(
        options, gpu_layers=0, parallel=settings.parallel, cache=settings.cache
    )
    with Model(path, context=4096, settings=settings) as model:
        turns = [{"role": "user", "content": shortened(model, text, args.tokens)}]
        answer = model.chat(turns, sampling=GREEDY, max_tokens=32)
        turns.append({"role": "assistant", "content": answer.text()})
        title = "Give the chat a title of three words."
        model.chat(title, sampling=GREEDY, max_tokens=16).text()
        turns.append({"role": "user", "content": "Go on."})
        start = time.perf_counter()
        reply = model.chat(turns, sampling=GREEDY, max_tokens=16)
        pieces = iter(reply)
        first = next(pieces)
        seconds = time.perf_counter() - start
        said = first + "".join(pieces)
        assert reply.prefill is not None
        return Turn(reply.prefill.reused, model.count_chat(turns), seconds, said)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    for name, value in (("tokens", 1810), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    found: dict[str, list[Turn]] = {name: [] for name in KINDS}
    for _ in range(args.rounds):
        for name, settings in KINDS.items():
            found[name].append(asked(args.model, text, args, settings))
    assert len({turn.text for turns in found.values() for turn in turns}) == 1
    load = os.getloadavg()[0]
    print(
        f"{args.model.name}, {os.cpu_count()} CPUs, {args.threads} threads, load {load:.1f}"
    )
    print("| | reused | of | seconds to the first token |\n| --- | --- | --- | --- |")
    for name, turns in found.items():
        seconds = statistics.median(turn.seconds for turn in turns)
        print(f"| {name} | {turns[0].reused:,} | {turns[0].total:,} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
