"""What a step is trained on: jumps, masks, short rows, the same rows for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make_llama

from ggext.tune.documents import Encoded
from ggext.tune.rows import IGNORED, Batch, RowOptions, Rows, stacked

POSE = RowOptions("pose", window=16, target=64, at_once=32, prefix=(1,))


def document(length: int, start: int = 100) -> Encoded:
    return Encoded(
        np.arange(start, start + length, dtype=np.int32), np.ones(length, np.bool_)
    )


def rows(
    options: RowOptions = POSE, batches: int = 20, lengths: tuple[int, ...] = (300, 9)
) -> Rows:
    return Rows(
        [document(n, 1000 * i) for i, n in enumerate(lengths, 1)], options, batches
    )


def test_four_of_ten_batches_are_short() -> None:
    made = rows()
    kinds = [made._kind(i)[0] for i in range(20)]
    assert kinds.count("short") == 8
    assert kinds.count("pose") == 12
    places = [made._kind(i)[1] for i in range(20) if made._kind(i)[0] == "pose"]
    assert places == list(range(12))


def test_a_row_with_a_jump_reaches_the_target_in_its_own_length() -> None:
    made = [rows().row("pose", i) for i in range(60)]
    assert all(len(row.tokens) <= 16 for row in made)
    assert max(int(row.positions.max()) for row in made) > 48
    for row in made:
        steps = np.diff(row.positions)
        assert row.positions[0] == 0
        assert int((steps != 1).sum()) <= 1
        assert int(row.positions[-1]) < 64


def test_what_follows_a_gap_in_the_text_is_not_learned() -> None:
    for row in (rows().row("pose", i) for i in range(60)):
        following = np.append(row.tokens[1:], -1)
        in_text = following - row.tokens == 1
        in_text[0] = True  # the prefix
        assert ((row.labels == following) | (row.labels == IGNORED)).all()
        assert (row.labels[:-1][~in_text[:-1]] == IGNORED).all()
        assert int((row.labels == IGNORED).sum()) <= 2


def test_documents_never_share_a_row() -> None:
    for kind in ("short", "pose"):
        for i in range(40):
            tokens = rows().row(kind, i).tokens[1:]  # type: ignore[arg-type]
            assert len({int(token) // 1000 for token in tokens}) == 1


def test_every_part_has_its_turn_before_one_comes_again() -> None:
    made = rows()
    count = len(made.parts("short"))
    seen = {int(made.row("short", i).tokens[1]) for i in range(count)}
    assert len(seen) == count


def test_the_same_seed_makes_the_same_rows() -> None:
    one, other = rows()[7], rows()[7]
    assert all((one[name] == other[name]).all() for name in one)
    different = rows(RowOptions("pose", 16, 64, 32, (1,), seed=1))[7]
    assert any(
        (one[name] != different[name]).any() for name in one if name != "attention_mask"
    )


def test_long_rows_have_the_target_length() -> None:
    made = rows(RowOptions("long", window=16, target=64, at_once=32))
    assert made[0]["input_ids"].shape == (1, 64)
    assert (made[0]["position_ids"] == np.arange(64)).all()


def test_long_rows_are_made_of_long_documents_alone() -> None:
    made = rows(
        RowOptions("long", window=16, target=64, at_once=32), lengths=(9, 16, 70, 9)
    )
    assert made.parts("long") == [(2, 0, 64)]
    assert len(made.parts("short")) == 8


def test_a_shorter_row_is_masked_at_its_end() -> None:
    made = rows()
    batch = stacked([made.row("short", i) for i in range(len(made.parts("short")))])
    assert batch["attention_mask"].sum(axis=1).min() == 10
    assert (batch["shift_labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


def test_only_what_is_learned_is_a_label() -> None:
    learned = np.zeros(12, np.bool_)
    learned[5:8] = True
    chat = Encoded(np.arange(100, 112, dtype=np.int32), learned)
    row = Rows([chat], POSE, 1).row("short", 0)
    assert [int(label) for label in row.labels if label != IGNORED] == [105, 106, 107]


def _changed_logits(model: Any, batch: Batch, jump: int, *, masked: bool) -> float:
    """By how much logits after the jump change where the tokens before it do."""
    import torch

    inputs = {
        "input_ids": torch.from_numpy(batch["input_ids"]),
        "position_ids": torch.from_numpy(batch["position_ids"]),
        "attention_mask": torch.from_numpy(batch["attention_mask"]) if masked else None,
    }
    other = dict(inputs)
    other["input_ids"] = inputs["input_ids"].clone()  # type: ignore[union-attr]
    other["input_ids"][:, :jump] += 1  # type: ignore[index]
    with torch.no_grad():
        first, second = (
            model(**one, use_cache=False).logits[:, jump:] for one in (inputs, other)
        )
    return float((first - second).abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_trap_without_a_mask_a_jump_hides_what_was_before(
    tmp_path: Path, attention: str
) -> None:
    """transformers 5 takes it for the start of another document where nothing is cached, as in
    training; the rows' masks prevent that."""
    transformers = pytest.importorskip(
        "transformers", reason="the extra tune is not installed"
    )
    folder = make_llama(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention
    )
    numbers = np.arange(40, 52, dtype=np.int32)
    made = Rows(
        [Encoded(numbers, np.ones(12, np.bool_))], RowOptions("pose", 12, 200, 12), 1
    )
    row = next(
        row
        for i in range(9)
        if np.diff((row := made.row("pose", i)).positions).max() > 9
    )
    jump = int(np.diff(row.positions).argmax()) + 1
    batch = stacked([row])
    assert _changed_logits(model, batch, jump, masked=False) == 0.0
    assert _changed_logits(model, batch, jump, masked=True) > 1e-3
