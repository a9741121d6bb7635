"""What is refused before a weight is loaded, in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import little_chats
import lookup_chats
import pytest

from ggext.errors import CheckpointError, GgextError, MissingExtraError, UsageError
from ggext.rope.scaling import RopeScaling
from ggext.tune.documents import Document, read_documents, split
from ggext.tune.machine import Machine
from ggext.tune.options import TuneOptions
from ggext.tune.plan import lora_size, planned
from ggext.tune.run import Tuning

Make = Callable[..., TuneOptions]
HERE = Machine("this machine")


def copied(checkpoint: Path, folder: Path, **config: object) -> Path:
    """The checkpoint with another config.json."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def test_the_plan_says_what_comes(options: Make) -> None:
    plan = planned(options(), HERE)
    assert (plan.rope.trained, plan.rope.context) == (64, 256)
    assert plan.rows.kind == "pose"
    assert plan.trained == lora_size(
        [
            (128, 128),
            (64, 128),
            (64, 128),
            (128, 128),
            (160, 128),
            (160, 128),
            (128, 160),
        ]
        * 2,
        4,
    )


def test_jumps_are_the_default_beyond_twice_the_trained_length(options: Make) -> None:
    assert (
        planned(options(scaling=RopeScaling("yarn", factor=2.0)), HERE).rows.kind
        == "long"
    )
    assert (
        planned(options(scaling=RopeScaling("yarn", factor=2.5)), HERE).rows.kind
        == "pose"
    )
    assert planned(options(rows="long"), HERE).rows.kind == "long"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling": RopeScaling("yarn", factor=1.0)}, "reaches 64 tokens as it is"),
        (
            {"scaling": RopeScaling("linear", factor=2.0, attention_factor=1.1)},
            "no attention fact",
        ),
        ({"stages": (2.0, 3.0)}, "the last stage has the factor 3"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(
    options: Make, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(GgextError, match=message):
        planned(options(**changes), HERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": (4.0, 2.0)}, "must rise"),
        ({"lora": None, "adapter": True}, "an adapter is what LoRA trains"),
        ({"texts": ()}, "no text"),
        ({"steps": 0}, "at least 1"),
        ({"learning_rate": 3.0}, "between 0 and 1"),
        ({"stages": (1.5, 2.0, 3.0, 3.5, 4.0)}, "4 steps are too few for 5 stages"),
    ],
)
def test_options_are_checked(
    options: Make, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        options(**changes)


def test_a_checkpoint_that_reaches_further_already_is_refused(
    checkpoint: Path, options: Make, tmp_path: Path
) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0}
    rope["original_max_position_embeddings"] = 64
    folder = copied(
        checkpoint, tmp_path / "own", rope_parameters=rope, max_position_embeddings=512
    )
    with pytest.raises(UsageError, match="reaches 512 tokens already"):
        planned(options(model=folder), HERE)
    assert planned(
        options(model=folder, scaling=RopeScaling("yarn", factor=16.0)), HERE
    )


def test_a_gguf_file_and_a_quantized_checkpoint_are_refused(
    checkpoint: Path, options: Make, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="ggext export"):
        planned(options(model=tmp_path / "model.gguf"), HERE)
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = copied(checkpoint, tmp_path / "packed")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    del tensors[f"{name}.weight"]
    tensors[f"{name}.trellis"] = np.zeros((4, 4), np.int16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match="quantized by EXL3, and such weights cannot be trai"
    ):
        planned(options(model=folder), HERE)


def test_too_little_memory_is_refused_with_both_numbers(options: Make) -> None:
    with pytest.raises(
        UsageError, match=r"needs about 0\.\d GiB, and a card has 0\.1 GiB free"
    ):
        planned(options(), replace(HERE, name="a card", memory=1 << 26))


def test_all_weights_take_more_memory_than_an_adapter(options: Make) -> None:
    assert planned(options(lora=None), HERE).memory > planned(options(), HERE).memory


_MEASURED = """
from pathlib import Path
import torch
from ggext.rope.scaling import RopeScaling
from ggext.tune.machine import peak_memory, return_freed_memory
from ggext.tune.options import TuneOptions
from ggext.tune.plan import PROGRAMS
from ggext.tune.run import Tuning
import ggext.tune.train
torch.set_num_threads(1)
return_freed_memory()  # as the command does
run = Tuning({options})
run.begin()
before = peak_memory(run.machine)
run.train(lambda _: None, lambda *_: None)
print(run.plan.memory - PROGRAMS, peak_memory(run.machine) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("lora", [8, None])
def test_the_memory_that_is_planned_is_used(
    options: Make, tmp_path: Path, lora: int | None
) -> None:
    """All of it, and at least half: of a process of its own, without what programs take."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(little_chats.lines(40, 256, seed=1, texts=True)))
    made = options(
        model=Path("demo"),
        texts=(texts,),
        lora=lora,
        rows="pose",
        window=256,
        batch_tokens=8192,
        steps=1,
    )
    code = _MEASURED.format(options=repr(made).replace("PosixPath", "Path"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    planned_bytes, used = map(int, done.stdout.split())
    assert used <= planned_bytes <= 2 * used


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(UsageError, match="8 documents, and 8 are set aside"):
        split([Document("a", "b")] * 8, 0)


def test_documents_are_set_aside_whole_and_alike() -> None:
    documents = [Document(str(i), "text") for i in range(200)]
    one, again = split(documents, 3), split(documents, 3)
    assert one == again
    assert len(one.held_out) == 20
    assert not set(one.held_out) & set(one.training)
    assert split(documents, 4) != one


def test_long_rows_need_long_documents(options: Make, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"a short text {i}")
    with pytest.raises(UsageError, match="no document has more than the 64 tokens"):
        Tuning(options(rows="long", texts=(folder,)))


def test_fewer_tokens_than_the_run_reads_are_told(options: Make) -> None:
    assert "times: more text is better" in Tuning(options(steps=100)).texts
    assert "times" not in Tuning(options(steps=1)).texts


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"text": 3}', '{"text": " "}', '{"messages": [1]}']
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "right"}}\n{line}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl:2 is not a document"):
        read_documents([path])


def test_chats_that_look_facts_up_have_their_answers_in_the_passage(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chats.jsonl"
    text = "One day Tom went out. It rained! He said nothing. " * 40
    path.write_text("\n".join(lookup_chats.lines(text, 20, 80, seed=3)))
    for document in read_documents([path]):
        passage = document.messages[0][1]
        answers = [text for role, text in document.messages if role == "assistant"]
        assert len(answers) == 4
        assert all(answer in passage for answer in answers)
        assert 80 < len(passage.split()) < 150


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("%PDF")
    with pytest.raises(UsageError, match=r"holds no document .*jsonl"):
        read_documents([tmp_path])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ggext.tune.machine import check_packages

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        MissingExtraError, match=r'tuning needs the package peft.*"ggext\[tune\]"'
    ):
        check_packages()
