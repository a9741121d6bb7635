"""M-RoPE: every pair turns in a text, in files of ours and, mended, in those of others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from family_rows import ROWS
from tiny import make_model

from ggext.convert import ConvertOptions, convert
from ggext.gguf.inplace import undo
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field
from ggext.gguf.writer import write_gguf
from ggext.inspect import inspect
from ggext.rope.capabilities import CAPABILITIES
from ggext.rope.scaling import RopeScaling
from ggext.rope.sections import SECTIONS, sections_to_write, still_pairs
from ggext.verify import verify


def test_the_published_sections_of_qwen3_vl_leave_two_pairs_still() -> None:
    """Seen on a one-node graph of the pinned llama.cpp, on CPU and, by its lines, on CUDA."""
    assert still_pairs((24, 20, 20, 0), 64, "interleaved") == (61, 62)
    assert sections_to_write((24, 20, 20), 64, "interleaved") == (22, 21, 21, 0)
    assert still_pairs((22, 21, 21, 0), 64, "interleaved") == ()


@pytest.mark.parametrize(
    ("sections", "kind"),
    [((11, 11, 10), "interleaved"), ((16, 24, 24), "blocks"), ((8, 12, 12), "blocks")],
)
def test_sections_that_turn_every_pair_stay_as_published(
    sections: tuple[int, int, int], kind: str
) -> None:
    assert sections_to_write(sections, sum(sections), kind) == (*sections, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_pairs", range(1, 140))
def test_there_are_sections_for_any_number_of_pairs(n_pairs: int) -> None:
    written = sections_to_write((n_pairs, 0, 0), n_pairs, "interleaved")
    assert sum(written) == n_pairs
    assert not still_pairs(written, n_pairs, "interleaved")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    row = ROWS["qwen3_vl-published"]
    folder = tmp_path_factory.mktemp("seeing") / "model"
    return make_model(folder, row.model_type, **row.config)


@pytest.fixture
def published(checkpoint: Path, tmp_path: Path) -> Path:
    """The model as llama.cpp's own converter writes it: the published sections, no recipe."""
    ours = tmp_path / "ours.gguf"
    convert(ConvertOptions(checkpoint, ours))
    gguf = read_gguf(ours)
    fields = {k: v for k, v in gguf.fields.items() if not k.startswith("ggext.")}
    fields["qwen3vl." + SECTIONS] = Field.of([24, 20, 20, 0])
    from ggext.convert.fold import Rounding
    from ggext.convert.quantize import to_write
    from ggext.convert.sources import open_source

    tensors = [to_write(t, t.type, Rounding()) for t in open_source(ours).tensors]
    out = tmp_path / "published.gguf"
    write_gguf(out, fields, tensors)
    return out


def test_a_published_file_fails_and_its_pairs_are_named(
    published: Path, checkpoint: Path
) -> None:
    pytest.importorskip("llama_cpp")
    report = verify(published, checkpoint, levels=["table", "graph", "logits"])
    assert not report.passed
    reasons = [check.why for check in report.checks if check.why]
    assert reasons
    assert all(
        "pairs 61, 62" in why for why in reasons if "frequency" in why or "turn" in why
    )
    assert "pairs 61, 62" in inspect(published).still_pairs


def test_a_published_file_is_mended_in_place_and_back(
    published: Path, checkpoint: Path
) -> None:
    pytest.importorskip("llama_cpp")
    before = hashlib.sha256(published.read_bytes()).digest()
    convert(ConvertOptions(published, in_place=True))
    assert read_gguf(published).get("qwen3vl." + SECTIONS) == [22, 21, 21, 0]
    report = verify(published, checkpoint)
    assert report.passed, report
    assert not inspect(published).still_pairs
    undo(published)
    assert hashlib.sha256(published.read_bytes()).digest() == before


def test_a_scaling_mends_the_sections_too(published: Path, checkpoint: Path) -> None:
    pytest.importorskip("llama_cpp")
    convert(
        ConvertOptions(published, rope=RopeScaling("yarn", factor=3), in_place=True)
    )
    report = verify(published, checkpoint)
    assert report.passed, report


def test_who_has_sections() -> None:
    have = {
        arch: c.sections for arch, c in CAPABILITIES.items() if c.sections != "none"
    }
    assert {"qwen2vl": "blocks", "qwen3vl": "interleaved"}.items() <= have.items()
