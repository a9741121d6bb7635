"""docs/rope-parity.md says what the code does; its figures are those of the last run of
``rope_matrix.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

from rope_matrix import CONFIGS, PAGE, REQUESTS, encoded, form, published_table, shapes
from tiny import small_config

pytestmark = pytest.mark.slow

STALE = "docs/rope-parity.md is stale: run python tools/rope_matrix.py"
#: nats; ggml's GELU is a table of float16
BOUND = {"gemma2": 2e-6, "gemma3_text": 1e-5}


def cells() -> dict[str, list[str]]:
    lines = PAGE.read_text("utf-8").split("# What published")[0].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ")
    ]
    return {name: rest for name, *rest in rows[2:]}


def test_every_family_has_a_row() -> None:
    assert sorted(cells()) == sorted(shapes()), STALE


@pytest.mark.parametrize("name", shapes())
def test_a_row_is_what_is_written_and_exact(name: str, tmp_path: Path) -> None:
    """The encoding or the refusal is derived again; a file that is called exact was measured to
    be."""
    shape = shapes()[name]
    small_config(shape.model_type, **shape.config).save_pretrained(tmp_path)
    for request, cell in zip(REQUESTS, cells()[name], strict=True):
        expected = form(encoded(tmp_path, request)[1])
        figure, _, words = cell.partition(" ")
        if expected.startswith("none"):
            assert cell == expected, STALE
            continue
        words = (
            cell.removeprefix("not judged ") if cell.startswith("not judged") else words
        )
        assert words == expected, STALE
        if not words.startswith("runtime ") or words.startswith("runtime, "):
            assert float(figure) <= BOUND.get(name, 1e-6), (name, request)


@pytest.mark.shared("configs")
def test_published_configurations(shared: Path) -> None:
    assert CONFIGS.samefile(shared / "configs")
    assert published_table() in PAGE.read_text("utf-8"), STALE
