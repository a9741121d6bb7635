"""Whether a file's keys survive context shifts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hostile.mutations import draft_of, write
from tiny_gguf import base_of
from verified import GAIN, ggext

from ggext.errors import ModelError
from ggext.gguf.types import Field, ValueType
from ggext.verify import verify

pytest.importorskip("llama_cpp")


# shift


def test_a_gain_in_the_keys_is_applied_again_by_every_shift(
    files: dict[str, Path],
) -> None:
    report = verify(files["yarn"], levels=["shift"])
    assert [row.k_norm for row in report.shifts] == pytest.approx(
        [GAIN, GAIN**2, GAIN**3], rel=1e-5
    )
    assert [round(row.k_norm, 4) for row in report.shifts] == [1.1386, 1.2965, 1.4762]
    assert 1e-5 < report.shifts[0].kl < report.shifts[2].kl
    assert report.shift_safe is False
    assert report.passed  # right, as long as no one rolls it


@pytest.mark.parametrize(
    "method", ["none", "linear", "ntk", "llama3", "yarn-gain-1", "yarn-betas"]
)
def test_without_a_gain_the_cache_may_roll(files: dict[str, Path], method: str) -> None:
    report = verify(files[method], levels=["shift"], require_shift_safe=True)
    assert report.passed
    assert report.shift_safe is True
    assert max(row.kl for row in report.shifts) < 1e-9
    assert all(row.k_norm == pytest.approx(1, abs=1e-6) for row in report.shifts)


def test_require_shift_safe(files: dict[str, Path]) -> None:
    told, required = (
        ggext("verify", files["yarn"], "--details", "--level", "shift", *o)
        for o in ([], ["--require-shift-safe"])
    )
    assert (told.exit_code, required.exit_code) == (0, 1)
    assert "UNSAFE  not safe to roll: ×1.1386, ×1.2965, ×1.4762" in told.stdout
    assert (
        "each shift multiplies the cached keys by the attention factor 1.139"
        in told.stdout
    )
    assert "or write the file with --encoding folded" in told.stdout
    assert told.stdout.endswith("do not let it roll\n")
    assert "WRONG" in required.stdout


def test_a_cache_that_cannot_shift(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    from ggext.runtime.probe import Probe

    monkeypatch.setattr(Probe, "can_shift", False)
    report = verify(files["none"])
    assert report.passed
    assert (
        "shift: not measured; llama.cpp cannot shift the cache of this llama model"
        in report.notes
    )
    assert report.shift_safe is None
    with pytest.raises(ModelError, match="cannot shift the cache"):
        verify(files["none"], require_shift_safe=True)


def with_key(path: Path, arch: str, key: str, value: Field) -> Path:
    """A tiny model with another value of one of its architecture's keys."""
    draft = draft_of(arch, *base_of(arch))
    draft.fields[f"{arch}.{key}"] = value
    write(path, draft)
    return path


def test_a_model_of_which_all_layers_slide(tmp_path: Path) -> None:
    """It has a second cache without layers, which llama.cpp cannot shift: it ends the process."""
    sliding = Field.of([True] * base_of("gemma3")[0]["gemma3.block_count"])
    key = "attention.sliding_window_pattern"
    path = with_key(tmp_path / "case.gguf", "gemma3", key, sliding)
    report = verify(path, levels=["shift"])
    assert (
        "shift: not measured; llama.cpp cannot shift the cache of this gemma3 model"
        in report.notes
    )


def test_logits_that_are_no_numbers_are_not_right(tmp_path: Path) -> None:
    scale = Field(ValueType.FLOAT32, -math.inf)
    path = with_key(tmp_path / "case.gguf", "command-r", "logit_scale", scale)
    report = verify(path, levels=["shift"])
    assert any("logits are no finite numbers" in note for note in report.notes)
    assert report.shift_safe is None


def test_keys_that_are_zero_say_nothing(tmp_path: Path) -> None:
    draft = draft_of("llama", *base_of("llama"))
    for name, tensor in draft.tensors.items():
        if "attn_k." in name:
            draft.tensors[name] = replace(tensor, data=bytes(4))
    write(tmp_path / "case.gguf", draft)
    report = verify(tmp_path / "case.gguf", levels=["shift"])
    assert any("keys are zero or no finite" in note for note in report.notes)
