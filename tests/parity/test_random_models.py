"""Random configurations of every family against transformers: what is converted has its logits, the
rest is refused.

GGEXT_LONGER=10 tries ten times as many of each.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from family_rows import WITHOUT_A_ROW
from ggext.converters import known_families
from random_models import gelu_of_ggml, make_random_model, random_model_config, respell
from renamed import RENAMED, rename

from ggext.convert import ConvertOptions, convert
from ggext.errors import GgextError
from ggext.llama_cpp_facts.indexer import IN_BLOCKS
from ggext.proof.reference import divergence, judge_class

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

EACH = 2 * int(os.environ.get("GGEXT_LONGER", "1"))
TRIED = 15  # for each that is compared
BOUND = 2e-6  # mean KL in nats; a model of large scores loses as much to float32


@pytest.mark.parametrize("model_type", sorted(set(known_families()) - WITHOUT_A_ROW))
@pytest.mark.usefixtures("ggml_gelu")
def test_random_configurations(model_type: str, tmp_path: Path) -> None:
    """``EACH`` that transformers runs and ggext converts."""
    compared, refusals = 0, []
    for seed in range(TRIED * EACH):
        folder, out = tmp_path / f"{seed}", tmp_path / f"{seed}.gguf"
        found = _evaluated(RENAMED.get(model_type, model_type), folder, seed)
        if found is None:
            continue
        checkpoint = folder
        if model_type in RENAMED:
            checkpoint = rename(folder, tmp_path / f"{seed}-renamed", model_type)
        try:
            planned = convert(ConvertOptions(checkpoint, out))
        except GgextError as error:
            refusals.append(str(error))
            continue
        if planned.encoding is None or planned.encoding.exactness.is_exact:
            context = planned.fields[f"{planned.source.arch}.context_length"].value
            kl = _divergence(out, *(values[:context] for values in found))
            assert kl <= BOUND, (seed, (folder / "config.json").read_text())
            compared += 1
        if compared == EACH:
            break
    assert compared == EACH, (
        f"only {compared} of {TRIED * EACH} configurations were compared: {refusals}"
    )
    assert not any("\n" in refusal for refusal in refusals)


def _evaluated(
    model_type: str, folder: Path, seed: int
) -> tuple[list[int], Any] | None:
    """Tokens and what transformers makes of them with the configuration as it stands in the folder,
    ``None`` where it cannot run that or would take random weights."""
    import torch
    from transformers import AutoConfig

    random = Random(f"{model_type} {seed}")
    try:
        make_random_model(folder, random_model_config(model_type, random), seed)
        if random.random() < 0.6:
            respell(folder, random)
        config = AutoConfig.from_pretrained(folder)
        model, info = judge_class(config).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
        ids = [
            2 + (7919 * i + 13 * seed) % 300
            for i in range(min(160, config.get_text_config().max_position_embeddings))
        ]
        with torch.inference_mode():
            logits = (
                model.eval()(torch.tensor([ids]), use_cache=False).logits[0].numpy()
            )
    except Exception:  # noqa: BLE001 - whatever a model's code says of a configuration that it cannot run
        return None
    return None if info["missing_keys"] or info["mismatched_keys"] else (ids, logits)


def _divergence(path: Path, ids: list[int], expected: Any) -> float:
    from ggext.runtime.engine import Model, Session, SessionOptions

    with (
        Model.open(path) as model,
        Session(
            model,
            SessionOptions(
                n_ctx=len(ids),
                kv_type="f32",
                flash_attention=model.architecture in IN_BLOCKS,
            ),
        ) as session,
    ):
        kl, _ = divergence(expected, session.logits(ids))
    return float(kl.mean())


@pytest.fixture
def ggml_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ggml's table of float16 in transformers, next to which 1e-6 is much."""
    import torch
    from transformers.activations import ACT2FN

    class Gelu(torch.nn.Module):
        forward = staticmethod(gelu_of_ggml)

    for activation in ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"):
        monkeypatch.setitem(ACT2FN, activation, Gelu)
