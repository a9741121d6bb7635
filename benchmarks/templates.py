"""What rendering a chat template in a child process costs a turn, against the same in this process.

    python benchmarks/templates.py [--templates FOLDER] [--repeat 50]

FOLDER holds ``*.jinja`` (llama.cpp's ``models/templates``); without it a short ChatML template is
timed. Prints a Markdown table: medians over the templates' medians, and the slowest template's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from ggext.chat.renderer import renderer
from ggext.chat.sandbox import Sandbox
from ggext.chat.template import ChatTemplate, TemplateError
from ggext.chat.transcript import Turn

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=Path)
    parser.add_argument("--repeat", type=int, default=50)
    arguments = parser.parse_args()
    files = sorted(arguments.templates.glob("*.jinja")) if arguments.templates else []
    sources = [file.read_text() for file in files] or [CHATML]
    start = time.perf_counter()
    renderer.compile("", 5)
    print(f"start of the child: {(time.perf_counter() - start) * 1e3:.0f} ms, once\n")
    print(
        "| conversation | templates | in this process, ms | in the child, ms | more, ms | most |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, turns, repeat in conversations(arguments.repeat):
        rows = [
            row
            for source in sources
            if (row := times(source, turns, repeat)) is not None
        ]
        here, there = (statistics.median(row[i] for row in rows) for i in (0, 1))
        more = [row[1] - row[0] for row in rows]
        print(
            f"| {name} | {len(rows)} | {here:.2f} | {there:.2f} "
            f"| {statistics.median(more):.2f} | {max(more):.2f} |"
        )


def conversations(repeat: int) -> list[tuple[str, list[Turn], int]]:
    """Name, turns, repetitions."""
    exchange = [
        Turn("user", "Where is the map? " * 10),
        Turn("assistant", "Below. " * 40),
    ]
    book = "It was the best of times, it was the worst of times. " * 12_000
    return [
        ("one question", [exchange[0]], repeat),
        ("20 exchanges", [*exchange * 20, exchange[0]], repeat),
        (
            f"a book of {len(book):,} characters",
            [Turn("user", book)],
            max(repeat // 10, 3),
        ),
    ]


def times(source: str, turns: list[Turn], repeat: int) -> tuple[float, float] | None:
    """Median milliseconds here and in the child; None where the template refuses the turns."""
    try:
        template = ChatTemplate(source, SPECIAL)
        template.render(turns)
        sandbox = Sandbox(1 << 30)
        compiled = sandbox.from_string(source)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        values = {**SPECIAL, "messages": messages, "add_generation_prompt": True}
        compiled.render(values, tools=None, documents=None)
    except (TemplateError, TypeError):
        return None
    return (
        median(lambda: compiled.render(values, tools=None, documents=None), repeat),
        median(lambda: template.render(turns), repeat),
    )


def median(call: Callable[[], object], repeat: int) -> float:
    """Milliseconds."""
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e3


if __name__ == "__main__":
    main()
