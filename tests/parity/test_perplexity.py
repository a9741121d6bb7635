"""Perplexity against transformers', method by method, on trained models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import SHARED

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.data import demo_language as language
from ggext.rope.scaling import RopeScaling

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from ggext.gguf.open import read_gguf  # noqa: E402
from ggext.proof.reference import transformers_logits  # noqa: E402
from ggext.quality.perplexity import nll  # noqa: E402
from ggext.quality.texts import little_piece  # noqa: E402
from ggext.runtime.engine import Model, Session, SessionOptions  # noqa: E402
from ggext.runtime.scaled import unscaled_geometry  # noqa: E402

pytestmark = pytest.mark.slow

STORIES = SHARED / "models" / "stories260K"
METHODS = [
    RopeScaling("none", context=4096),
    RopeScaling("linear", factor=4),
    RopeScaling("ntk", factor=4),
    RopeScaling("yarn", factor=4),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def transformers_nll(
    folder: Path, scaling: RopeScaling, gguf: Path, tokens: list[int]
) -> Any:
    """-log p by torch's own cross entropy."""
    geometry = unscaled_geometry(read_gguf(gguf))
    logits = transformers_logits(folder, scaling, geometry, tokens)
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[:-1]).double(),
        torch.tensor(tokens[1:]),
        reduction="none",
    )
    return loss.numpy()


@pytest.mark.parametrize("scaling", METHODS, ids=lambda scaling: scaling.method)
@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param(DEMO_MODEL, id="embedded"),
        pytest.param(
            STORIES, id="stories260K", marks=pytest.mark.shared("models/stories260K")
        ),
    ],
)
def test_perplexity_is_transformers(
    checkpoint: Path, scaling: RopeScaling, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    convert(ConvertOptions(checkpoint, path, scaling))
    with Model.open(path) as model:
        tokens = sample(model, checkpoint, model.n_ctx_original * 3 // 2)
        # 16-bit keys and values would be measured as if they were the method's.
        options = SessionOptions(n_ctx=len(tokens), kv_type="f32")
        with Session(model, options) as session:
            actual = nll(session, tokens)
    expected = transformers_nll(checkpoint, scaling, path, tokens)
    for part in (slice(0, model.n_ctx_original), slice(model.n_ctx_original, None)):
        ours, theirs = math.exp(actual[part].mean()), math.exp(expected[part].mean())
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert actual == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param(DEMO_MODEL, id="embedded"),
        pytest.param(
            STORIES, id="stories260K", marks=pytest.mark.shared("models/stories260K")
        ),
    ],
)
def test_perplexity_with_dynamic_ntk_is_transformers(
    checkpoint: Path, tmp_path: Path
) -> None:
    """At twice the trained length both have the base of that length; transformers for all tokens,
    ours for those after the trained length, before which the base is the model's."""
    path = tmp_path / "model.gguf"
    convert(ConvertOptions(checkpoint, path, RopeScaling("none")))
    with Model.open(path) as model:
        trained = model.n_ctx_train
        tokens = sample(model, checkpoint, 2 * trained)
        options = SessionOptions(n_ctx=2 * trained, kv_type="f32", dynamic_ntk="replay")
        with Session(model, options) as session:
            actual = nll(session, tokens, trained + 1)
    base = unscaled_geometry(read_gguf(path))
    # factor 1: transformers' formula with the length as it is
    scaling = RopeScaling("dynamic", factor=1.0, original_context=base.trained_context)
    expected = transformers_nll(checkpoint, scaling, path, tokens)[trained:]
    assert math.exp(actual.mean()) == pytest.approx(math.exp(expected.mean()), rel=1e-3)


def sample(model: Model, checkpoint: Path, count: int) -> list[int]:
    if checkpoint == DEMO_MODEL:
        assert model.token_text(model.bos) == language.BOS
        return list(little_piece(model, count, 0, 0).tokens)
    text = (SHARED / "texts" / "tinystories.txt").read_text("utf-8")
    return model.tokenize(text[: 8 * count])[:count]
