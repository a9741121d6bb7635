"""What the authors of published models say that they trained and extended.

A file often says less: Qwen 3's configuration has the 40,960 tokens of its default setting, of
which the model was trained on 32,768. One row a fact, each from the page that it names.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggext.rope.scaling import Method


@dataclass(frozen=True)
class Published:
    """A family of models whose authors publish one extension."""

    # as a sentence names it
    name: str
    # llama.cpp's architectures
    archs: tuple[str, ...]
    # the context of the unextended files (max_position_embeddings), tokens
    context: int
    # the context that they were trained for, from which the authors extend, tokens
    trained: int
    method: Method
    # the largest factor that the authors publish
    factor: float
    # the page that says so
    source: str

    @property
    def reach(self) -> int:
        """The extended context, tokens."""
        return int(self.factor * self.trained)


PUBLISHED = (
    Published(
        "Qwen 3",
        ("qwen3", "qwen3moe"),
        40960,
        32768,
        "yarn",
        4.0,
        "huggingface.co/Qwen/Qwen3-8B, Processing Long Texts",
    ),
    Published(
        "Qwen 2.5",
        ("qwen2",),
        32768,
        32768,
        "yarn",
        4.0,
        "huggingface.co/Qwen/Qwen2.5-7B-Instruct, Processing Long Texts",
    ),
)


def published(arch: str, context: int) -> Published | None:
    """The row of an unextended model, by its architecture and its context in tokens."""
    rows = (row for row in PUBLISHED if arch in row.archs and context == row.context)
    return next(rows, None)
