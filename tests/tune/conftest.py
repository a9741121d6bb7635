"""A tiny checkpoint and texts, on which a run takes a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import DOCUMENT, make_llama

from ggext.rope.scaling import RopeScaling
from ggext.tune.options import TuneOptions


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other on a busy machine."""
    torch = pytest.importorskip("torch", reason="the extra tune is not installed")
    for package in ("transformers", "peft", "accelerate"):
        pytest.importorskip(package, reason="the extra tune is not installed")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tune") / "model")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents of some 300 tokens."""
    words = DOCUMENT.read_text("utf-8").split()
    folder = tmp_path_factory.mktemp("texts")
    lines = [
        json.dumps({"text": " ".join(words[i * 50 : i * 50 + 120])}) for i in range(12)
    ]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return folder


Make = Callable[..., TuneOptions]


@pytest.fixture
def options(checkpoint: Path, texts: Path, tmp_path: Path) -> Make:
    """The options of a run of a few steps."""

    def make(**changes: Any) -> TuneOptions:
        base = TuneOptions(
            checkpoint,
            (texts,),
            tmp_path / "run",
            RopeScaling("yarn", factor=4.0),
            lora=4,
            steps=4,
            batch_tokens=256,
            window=32,
            learning_rate=1e-3,
            save_every=1,
            gradient_checkpointing=False,
        )
        return replace(base, **changes)

    return make
