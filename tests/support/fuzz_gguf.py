"""Damages headers at random and reads them: the answer is a header or a GgufError, within memory
and time.

    python tests/support/fuzz_gguf.py SECONDS SEED

Bytes are flipped, numbers replaced by extreme ones, pieces cut out, doubled and moved; what is read
is also built, and packed again."""

from __future__ import annotations

import itertools
import random
import struct
import sys
import tempfile
import time
from pathlib import Path

from library_gguf import library_file

from ggext.errors import GgufError
from ggext.gguf.header import packed_length
from ggext.gguf.reader import parse_header

_AT_ONCE = 10_000  # headers with a seed of their own
EXTREMES = [
    0,
    1,
    7,
    8,
    31,
    32,
    255,
    1 << 16,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]


def seeds(folder: Path) -> list[bytes]:
    """Small files with every kind of value, so that little of the damage hits mere data."""
    from gguf import GGUFValueType as T

    keys = {
        "u8": (200, T.UINT8),
        "i64": (-5, T.INT64),
        "f64": (0.5, T.FLOAT64),
        "flag": (True, T.BOOL),
        "names": (["x", "yz", ""], T.ARRAY),
        "flags": ([True, False], T.ARRAY),
        "numbers": ([1, 2, 3], T.ARRAY),
    }
    files = [
        library_file(folder / "a.gguf", tokens=3, **keys),
        library_file(folder / "b.gguf", {}, alignment=64, tokens=1),
    ]
    whole = [path.read_bytes() for path in files]
    nested = struct.pack("<IQ", 9, 2) + 2 * (
        struct.pack("<IQ", 8, 1) + struct.pack("<Q", 2) + b"ab"
    )
    architecture = (
        struct.pack("<Q", 20)
        + b"general.architecture"
        + struct.pack("<IQ", 8, 1)
        + b"x"
    )
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + nested
    return [*whole, b"GGUF" + struct.pack("<IQQ", 2, 0, 2) + architecture + key]


def damaged(data: bytes, draw: random.Random) -> bytes:
    result = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(max(1, min(len(result), 700)))
        match draw.randrange(6):
            case 0:
                result[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                result[at : at + 8] = struct.pack("<Q", draw.choice(EXTREMES))
            case 2:
                result[at : at + 4] = struct.pack(
                    "<I", draw.choice(EXTREMES) & 0xFFFFFFFF
                )
            case 3:
                del result[at : at + draw.randint(1, 40)]
            case 4:
                result[at:at] = result[draw.randrange(max(1, len(result))) :][
                    : draw.randint(1, 60)
                ]
            case _:
                del result[draw.randrange(max(1, len(result))) :]
    return bytes(result)


def run(count: int, seed: int | str) -> tuple[int, int]:
    """How many were headers, and how many were refused."""
    draw, read = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        whole = seeds(Path(folder))
    for data in whole:
        parse_header(Path("whole.gguf"), data)
    for _ in range(count):
        try:
            gguf = parse_header(Path("x.gguf"), damaged(draw.choice(whole), draw))
        except GgufError as error:
            if "\n" in str(error):
                raise
            continue
        read += 1
        for field in gguf.fields.values():
            assert field.value is not None
        assert packed_length(gguf.fields, list(gguf.tensors.values())) <= gguf.size
    return read, count - read


def main() -> int:
    end, headers, refusals = time.monotonic() + float(sys.argv[1]), 0, 0
    for number in itertools.count():
        if time.monotonic() > end:
            break
        read, refused = run(_AT_ONCE, f"{sys.argv[2]}/{number}")
        headers, refusals = headers + read, refusals + refused
    sys.stdout.write(
        f"seed {sys.argv[2]}: {headers:,} headers, {refusals:,} refusals, no crash\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
