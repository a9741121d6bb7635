"""The end of a run: the merged table, the GGUF's, the adapter on a folded file, the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import little_chats
import numpy as np
import pytest

from ggext.convert import ConvertOptions, convert
from ggext.errors import CheckpointError, GgufError, RopeError
from ggext.gguf.open import read_gguf
from ggext.gguf.rope import effective_table, recipe_of
from ggext.rope.keys import query_scale
from ggext.rope.scaling import RopeScaling
from ggext.tune import finish
from ggext.tune.options import TuneOptions
from ggext.tune.run import Tuning
from ggext.tune.tables import prove

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

Make = Callable[..., TuneOptions]
TOKENS = list(range(2, 102))


@pytest.fixture
def tuned(options: Make) -> Tuning:
    run = Tuning(options(steps=3, learning_rate=2e-2))
    run.begin()
    run.train(lambda _: None, lambda *_: None)
    return run


def logits(path: Path, adapter: Path | None = None) -> Any:
    from ggext.runtime.context import SessionOptions
    from ggext.runtime.engine import Model, Session

    options = SessionOptions(
        n_ctx=128, threads=1, kv_type="f32", flash_attention=False, adapter=adapter
    )
    with Model.open(path, 0) as model, Session(model, options) as session:
        return session.logits(TOKENS)


def kl(first: Any, second: Any) -> float:
    from ggext.runtime.likelihood import diverge

    return float(diverge(first, second).kl.max())


def test_the_table_is_proved_after_the_merge_and_in_the_file(tuned: Tuning) -> None:
    final = tuned.folder.stage(1) / "final"
    proof = finish.merge(tuned.plan, final, tuned.folder, adapter=True)
    assert proof.place == "after the merge"
    assert proof.difference.is_exact
    path, in_file, (passed, checks) = finish.bake(tuned.plan, tuned.folder, "f32")
    assert in_file.difference.is_exact
    assert passed == checks
    recipe = recipe_of(read_gguf(path))
    assert recipe is not None
    assert recipe.scaling.factor == 4.0
    assert recipe.geometry.trained_context == 64
    assert not list(tuned.folder.path.glob(".*.part"))


def test_a_file_with_another_table_is_found(tuned: Tuning, tmp_path: Path) -> None:
    convert(ConvertOptions(tuned.plan.folder, tmp_path / "a.gguf", replace(
        tuned.plan.rope.scaling, factor=4.001
    )))  # fmt: skip
    with pytest.raises(RopeError, match="in the GGUF file is not the one"):
        prove(
            "in the GGUF file",
            tuned.plan.rope.table,
            effective_table(read_gguf(tmp_path / "a.gguf")),
        )


def test_what_is_trained_is_in_the_merged_checkpoint(tuned: Tuning) -> None:
    from ggext.proof.reference import transformers_logits

    final = tuned.folder.stage(1) / "final"
    finish.merge(tuned.plan, final, tuned.folder, adapter=True)
    path, _, _ = finish.bake(tuned.plan, tuned.folder, "f32")
    rope = tuned.plan.rope
    expected = transformers_logits(
        tuned.folder.checkpoint, rope.scaling, rope.geometry, TOKENS
    )
    untrained = transformers_logits(
        tuned.plan.folder, rope.scaling, rope.geometry, TOKENS
    )
    assert kl(expected, logits(path)) < 1e-6
    assert kl(expected, untrained) > 1e-3
    config = json.loads((tuned.folder.checkpoint / "config.json").read_text())
    assert config["max_position_embeddings"] == 256
    assert config["rope_parameters"]["factor"] == 4.0
    assert (tuned.folder.checkpoint / "tokenizer.json").exists()


@pytest.mark.parametrize("encoding", ["keys", "folded"])
def test_an_adapter_on_the_untuned_file_is_the_merged_one(
    tuned: Tuning, tmp_path: Path, encoding: Any
) -> None:
    """Merged, then folded, against folded with the adapter, whose query rows are times m²."""
    from ggext.tune.adapter import write_adapter

    final = tuned.folder.stage(1) / "final"
    finish.merge(tuned.plan, final, tuned.folder, adapter=True)
    scaling = tuned.plan.rope.scaling
    base, merged, adapter = (
        tmp_path / f"{name}.gguf" for name in ("base", "merged", "adapter")
    )
    convert(ConvertOptions(tuned.plan.folder, base, scaling, encoding=encoding))
    convert(ConvertOptions(tuned.folder.checkpoint, merged, scaling, encoding=encoding))
    assert (query_scale(read_gguf(base).arch_keys()) != 1) == (encoding == "folded")
    write_adapter(final, tuned.plan.folder, base, adapter)
    expected = logits(merged)
    assert kl(expected, logits(base, adapter)) <= 1e-6
    assert kl(expected, logits(base)) > 1e-3


def test_an_adapter_is_bound_to_its_base(tuned: Tuning, tmp_path: Path) -> None:
    from ggext.runtime.adapter import fingerprint
    from ggext.tune.adapter import write_adapter

    scaling = tuned.plan.rope.scaling
    files = {}
    for name, options in {
        "keys": {"rope": scaling, "encoding": "keys"},
        "quantized": {"rope": scaling, "encoding": "keys", "type": "q8_0"},
        "folded": {"rope": scaling, "encoding": "folded"},
        "unscaled": {},
        "longer": {"rope": replace(scaling, factor=8.0), "encoding": "keys"},
    }.items():
        files[name] = tmp_path / f"{name}.gguf"
        convert(ConvertOptions(tuned.plan.folder, files[name], **options))  # type: ignore[arg-type]
    adapter = tmp_path / "adapter.gguf"
    write_adapter(
        tuned.folder.stage(1) / "final", tuned.plan.folder, files["keys"], adapter
    )
    for name in ("folded", "unscaled", "longer"):
        with pytest.raises(
            GgufError, match=r"was trained on keys\.gguf, and .* has another RoPE"
        ):
            logits(files[name], adapter)
    logits(files["quantized"], adapter)
    found = {name: fingerprint(read_gguf(path)) for name, path in files.items()}
    assert found["keys"] == found["quantized"]
    assert len(set(found.values())) == 4
    with pytest.raises(GgufError, match="is not an adapter"):
        logits(files["keys"], files["folded"])


@pytest.mark.parametrize(
    "setting", [{"use_dora": True}, {"use_rslora": True}, {"bias": "all"}]
)
def test_more_than_plain_lora_is_refused(
    tuned: Tuning, tmp_path: Path, setting: dict[str, object]
) -> None:
    from ggext.tune.adapter import write_adapter

    folder = tuned.folder.stage(1) / "final"
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(CheckpointError, match="more than plain LoRA"):
        write_adapter(
            folder, tuned.plan.folder, tmp_path / "base.gguf", tmp_path / "out.gguf"
        )


def test_a_whole_run_ends_with_a_report(options: Make, tmp_path: Path) -> None:
    """YaRN by 2 works untuned, and one step of a tiny rate changes next to nothing."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(little_chats.lines(12, 256, seed=1, texts=True)))
    made = options(
        model=Path("demo"),
        texts=(texts,),
        scaling=RopeScaling("yarn", factor=2.0),
        rows="pose",
        steps=1,
        learning_rate=1e-7,
        adapter=True,
        trials=1,
    )
    run = Tuning(made)
    run.begin()
    run.train(lambda _: None, lambda *_: None)
    done = run.finish(lambda _: None)
    assert done.verdict.outcome == "no gain"
    assert done.verdict.short_perplexity is not None
    assert done.verdict.short_perplexity.units > 1
    assert [path.suffix for path in done.adapter] == [".gguf", ".gguf"]
    report = json.loads((run.folder.path / "report.json").read_text())
    assert report["outcome"] == done.verdict.outcome
    assert (run.folder.path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert np.isfinite(done.proofs[1].difference.frequency_error)


def test_a_kept_state_is_of_one_adapter(tuned: Tuning, tmp_path: Path) -> None:
    """The cached keys and values are made with it: without it they would be wrong, and unseen."""
    from ggext.runtime import store
    from ggext.runtime.context import SessionOptions
    from ggext.runtime.engine import Model, Session
    from ggext.tune.adapter import write_adapter

    base, adapter, state = (
        tmp_path / name for name in ("base.gguf", "adapter.gguf", "state")
    )
    convert(ConvertOptions(tuned.plan.folder, base, tuned.plan.rope.scaling))
    write_adapter(tuned.folder.stage(1) / "final", tuned.plan.folder, base, adapter)
    with Model.open(base, 0) as model:
        with Session(model, SessionOptions(n_ctx=64, adapter=adapter)) as session:
            session.evaluate(TOKENS[:20])
            store.save(state, session, store.session_key(session))
            assert store.restore(state, session, store.session_key(session)) == 20
        with (
            Session(model, SessionOptions(n_ctx=64)) as session,
            pytest.raises(store.StateError),
        ):
            store.restore(state, session, store.session_key(session))
