"""Writes a Llama of a real model's shape with random weights: its tokens mean nothing, which a
clock does not mind.

python benchmarks/shaped_model.py FILE SHAPE [--type q4_0|q8_0|f16] [--layers N]

With fewer layers the vocabulary shrinks as much: a token takes as much less time, in the same
proportions, and every other operation of the graph the same.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ggext.doctor.shaped import TYPES, Shape, write_shaped

SHAPES = {
    "smollm2-135m": Shape(30, 576, 9, 3, 64, 1536, 49152, tied=True),
    "heads-of-256": Shape(26, 1152, 4, 1, 256, 6912, 262144, tied=True),  # Gemma 3 1B's
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 128, 3072, 151936, tied=True),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "llama-3-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256),
}


def with_layers(shape: Shape, layers: int | None) -> Shape:
    """The shape with so many layers (None: all), and a vocabulary in proportion."""
    if layers is None:
        return shape
    return replace(
        shape, layers=layers, vocab=shape.vocab * layers // shape.layers // 32 * 32
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--type", choices=TYPES, default="q4_0")
    parser.add_argument("--layers", type=int)
    args = parser.parse_args()
    write_shaped(args.file, with_layers(SHAPES[args.shape], args.layers), args.type)


if __name__ == "__main__":
    main()
