"""What `ggext doctor --measure` keeps, and what contexts make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ggext.folders import cache_folder
from ggext.footprint import speeds
from ggext.footprint.architecture import architecture
from ggext.footprint.planner import Choices
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.plan import PlanOptions, plan


@pytest.fixture
def header(demo_gguf: Path) -> GgufFile:
    return read_gguf(demo_gguf)


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    yield
    speeds._kept.cache_clear()


def until(header: GgufFile, head: int) -> int:
    arch = architecture(header)
    heads = tuple(replace(layer, key=head) for layer in arch.layers)
    return speeds.flash_until(replace(arch, layers=heads))


def test_the_nearest_size_of_heads_counts(header: GgufFile) -> None:
    assert until(header, 64) == 0  # nothing was measured
    speeds.keep({64: 2048, 128: 512, 256: 0})
    assert [until(header, head) for head in (32, 64, 80, 128, 192, 256)] == [
        *(2048, 2048, 2048, 512, 512, 0)
    ]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"form": 2}', b'{"form": 1, "flash_until": [3]}', b"\xff"]
)
def test_a_damaged_file_counts_as_none(header: GgufFile, damage: bytes) -> None:
    speeds.keep({64: 2048})
    (kept,) = (cache_folder() / "speeds").iterdir()
    kept.write_bytes(damage)
    assert until(header, 64) == 0


def test_another_processor_is_measured_again(
    header: GgufFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds.keep({64: 2048})
    monkeypatch.setattr(speeds, "processor", lambda: "another one")
    assert until(header, 64) == 0


def test_contexts_up_to_that_length_read_with_flash_attention(demo_gguf: Path) -> None:
    def flash(tokens: int, chosen: bool | None = None) -> bool:
        options = PlanOptions(tokens, 0, Choices(flash_attention=chosen))
        return plan(demo_gguf, options).context.flash_attention

    assert not flash(512)
    speeds.keep({64: 512})
    assert flash(512)
    assert not flash(513)
    assert not flash(512, chosen=False)
