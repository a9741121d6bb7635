"""Keys that cannot be moved are found before anything is."""

from __future__ import annotations

from pathlib import Path

import pytest
from full_contexts import SMALL, options
from tiny_gguf import HEAD, N_EMBD, N_KV, write_random

from ggext.errors import ModelError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.runtime.cache import Cache  # noqa: E402
from ggext.runtime.engine import Model, Session  # noqa: E402
from ggext.runtime.memory import WhenFull  # noqa: E402


def test_keys_of_an_architecture_that_is_not_established_are_not_moved(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggext.rope.capabilities.CAPABILITIES", {})
    with pytest.raises(
        ModelError,
        match=r"when_full='stream' moves cached keys: .*'llama'.* recompute works with every file",
    ):
        Session(model, options("stream"))
    Session(model, options("recompute")).close()


def test_a_rotation_that_is_not_llama_s_is_found_before_anything_is_moved(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an architecture that rotates some layers otherwise, or whose layout is not the one in
    the table."""
    for kv_type in ("f32", "f16", "bf16"):
        with Cache(model, options("stream", kv_type=kv_type)) as cache:
            assert cache.rotation_error() < (1e-4 if kv_type == "f32" else 0.02)
            cache.rotation()._layout = "neox"
            assert cache.rotation_error() > 0.3
    monkeypatch.setattr(Cache, "rotation_error", lambda _: 0.5)
    with pytest.raises(
        ModelError,
        match=r"llama.cpp turns those of this file otherwise \(by 0.5\); recompute works",
    ):
        Session(model, options("stream"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_keys_that_are_no_numbers_are_not_moved(tmp_path: Path, value: float) -> None:
    """Their difference is none either, and would pass for a rotation that is right."""
    weight = np.full((N_KV * HEAD, N_EMBD), value, "<f4")
    path = write_random(
        tmp_path / "m.gguf", "llama", extra_tensors={"blk.1.attn_k.weight": weight}
    )
    with (
        Model.open(path) as model,
        pytest.raises(ModelError, match=r"no finite numbers: its weights are damaged"),
    ):
        Session(model, options("stream"))


def test_a_move_that_fails_leaves_an_empty_cache_and_a_usable_session(
    model: Model, text: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    policies: tuple[WhenFull, ...] = ("stream", "landmark", "compress")
    for policy in policies:
        with Session(model, options(policy, **SMALL)) as session:
            session.evaluate(text[:150])
            monkeypatch.setattr(Cache, "put", fail)
            with pytest.raises(KeyboardInterrupt):
                session.evaluate(text[:700])
            monkeypatch.undo()
            assert session.tokens == ()
            prefill = session.evaluate(text[:700])
            assert (prefill.reused, prefill.evaluated) == (0, 700)
            assert session.used + session.dropped == 700
