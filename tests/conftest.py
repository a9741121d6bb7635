"""What every test gets: no user state, no network by accident, and ``shared`` where it exists."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from paths import SHARED

if TYPE_CHECKING:
    from vocabulary import Load

    from ggext.checkpoint.vocabulary.read import Vocabulary


def pytest_configure(config: pytest.Config) -> None:
    # Before any fixture opens a model: a child for each new file would take minutes.
    os.environ["GGEXT_FIRST_LOAD"] = "here"
    with suppress(ImportError):  # random cases are an extra's
        from hypothesis import HealthCheck, settings

        # A machine on which others compute draws slowly, which says nothing of a test.
        if "CI" not in os.environ and not config.getoption("hypothesis_profile", None):
            settings.register_profile(
                "patient",
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            )
            settings.load_profile("patient")
    config.addinivalue_line(
        "markers", "slow: real processes or models; `make quick` leaves it out"
    )
    config.addinivalue_line(
        "markers",
        "shared(*paths): reads these paths of ../shared; skipped where they are absent",
    )


def _require_shared(*paths: str) -> None:
    for path in paths or (".",):
        if not (SHARED / path).exists():
            pytest.skip(
                f"{Path('../shared', path)} is not here: a user's clone does not have it"
            )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: one of the module may read what is absent."""
    for mark in item.iter_markers("shared"):
        _require_shared(*mark.args)


_FOLDERS = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
    "HF_HOME": ".cache/huggingface",
}


def _at_home(home: Path, patch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    patch.setenv("HOME", str(home))
    for variable, folder in _FOLDERS.items():
        patch.setenv(variable, str(home / folder))


@pytest.fixture(scope="session", autouse=True)
def _isolated_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of a module see nothing of the real user either, such as what doctor measured."""
    with pytest.MonkeyPatch.context() as patch:
        _at_home(tmp_path_factory.mktemp("user") / "home", patch)
        yield


@pytest.fixture(autouse=True)
def _isolated_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs as a user who has never run anything; the real one's files stay untouched."""
    _at_home(tmp_path / "home", monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for variable in ("HF_TOKEN", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def shared() -> Path:
    """../shared: real configs, tokenizers, texts, a small model. A user's clone has none."""
    _require_shared()
    return SHARED


@pytest.fixture(scope="session")
def stories_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real small Llama of ../shared as a float32 GGUF file, with ``--rope none``."""
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling

    _require_shared("models/stories260K")
    out = tmp_path_factory.mktemp("models") / "stories.gguf"
    convert(ConvertOptions(SHARED / "models" / "stories260K", out, RopeScaling("none")))
    return out


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with YaRN for 512 tokens, float32; every clone has it."""
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling

    out = tmp_path_factory.mktemp("models") / "small.gguf"
    convert(
        ConvertOptions(DEMO_MODEL, out, RopeScaling("yarn", factor=2), encoding="keys")
    )
    return out


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Opens vocabularies in llama.cpp."""
    from vocabulary import LlamaCpp

    opened: list[LlamaCpp] = []

    def open_one(vocabulary: Vocabulary) -> LlamaCpp:
        opened.append(LlamaCpp(vocabulary, tmp_path / f"vocabulary-{len(opened)}.gguf"))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture(scope="session")
def crossing() -> tuple[dict[str, int], list[list[str]]]:
    """A vocabulary whose merges cross every border of words: any other split shows in the ids."""
    from vocabulary import strings

    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    trained.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    trained.train_from_iterator(strings(3000, seed=9), trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], model["merges"]


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with YaRN for 2,048 tokens, float32, the gain in its keys; everybody has
    it."""
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling

    out = tmp_path_factory.mktemp("models") / "demo.gguf"
    convert(
        ConvertOptions(DEMO_MODEL, out, RopeScaling("yarn", factor=8), encoding="keys")
    )
    return out
