"""Models that other programs keep: found where they lie, used there, and never changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hub_standin import Hub, serving
from tiny_gguf import write_random

from ggext.checkpoint.stores import find_stored, stored_models
from ggext.cli import main
from ggext.gguf.open import read_gguf
from ggext.gguf.split import part_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def ollama(root: Path, name: str, model: Path, **manifest: Any) -> Path:
    """As ``ollama create`` leaves it: a manifest, and blobs named by their checksums."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, blob)
    layers = [
        {
            "mediaType": "application/vnd.ollama.image.model",
            "digest": f"sha256:{digest}",
            "size": blob.stat().st_size,
        },
        {
            "mediaType": "application/vnd.ollama.image.template",
            "digest": f"sha256:{'0' * 64}",
            "size": 3,
        },
    ]
    path = root / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers} | manifest))
    return blob


def snapshot(
    cache: Path, repository: str, files: dict[str, Path], commit: str = COMMIT
) -> Path:
    """As huggingface_hub leaves it: blobs, and links to them by commit."""
    root = cache / f"models--{repository.replace('/', '--')}"
    folder = root / "snapshots" / commit
    for name, source in files.items():
        blob = root / "blobs" / hashlib.sha256(source.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, blob)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(blob)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return folder


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """One model in each store, and this folder with one of its own."""
    home, here = tmp_path / "user", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(here)
    model = write_random(here / "own.gguf", "llama")
    shutil.copy(model, here / ".hidden.gguf")
    shutil.copy(model, here / "mmproj-own.gguf")
    found = {"own.gguf": model}
    found["llama3.2:latest"] = ollama(
        home / ".ollama/models", "registry.ollama.ai/library/llama3.2/latest", model
    )
    other = write_random(tmp_path / "other.gguf", "qwen3")
    found["hf.co/owner/repo:Q4_K_M"] = ollama(
        home / ".ollama/models", "hf.co/owner/repo/Q4_K_M", other
    )
    files = {"other.gguf": other, "config.json": other, "model.safetensors": model}
    folder = snapshot(home / ".cache/huggingface/hub", "Owner/Name", files)
    found["Owner/Name"] = folder
    found["Owner/Name:other.gguf"] = folder / "other.gguf"
    place = home / ".lmstudio/models/publisher/model/file.gguf"
    place.parent.mkdir(parents=True)
    shutil.copy(other, place)
    found["publisher/model/file.gguf"] = place
    return found


def told(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_store_is_listed(stores: dict[str, Path]) -> None:
    listed = {model.name: model.path.resolve() for model in stored_models(Path())}
    assert listed == {name: path.resolve() for name, path in stores.items()}
    output = told("list")
    for name in stores:
        assert any(line.endswith(f"  {name}") for line in output.splitlines()), name
    assert "qwen3, 64 tokens" in output
    assert "checkpoint, to convert" in output
    assert max(len(line) for line in output.splitlines()) <= 80
    assert {row["name"] for row in json.loads(told("list", "--json"))} == set(stores)


@pytest.mark.parametrize(
    "name",
    [
        "llama3.2",
        "llama3.2:latest",
        "Owner/Name:other.gguf",
        "publisher/model/file.gguf",
    ],
)
def test_every_command_takes_the_names(stores: dict[str, Path], name: str) -> None:
    path = stores.get(name, stores["llama3.2:latest"])
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert "64 tokens" in told("inspect", name)
    assert "64 tokens" in told("show", name)
    assert "made for 64 tokens" in told("plan", name, "-ngl", 0)
    assert "64 tokens: exact" in told("verify", name, "--level", "table")
    written = told("convert", name, "new.gguf", "--linear", 2)
    assert "64 → 128 tokens" in written
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


@pytest.mark.usefixtures("stores")
def test_another_programs_model_is_not_changed() -> None:
    refused = CliRunner().invoke(
        main, ["convert", "llama3.2", "--linear", "2", "--in-place"]
    )
    assert refused.exit_code == 1
    assert "lies in Ollama's store, where its name is its checksum" in refused.stderr
    assert "wrote llama-linear2.gguf" in told("convert", "llama3.2", "--linear", 2)


def test_list_hides_no_builtin() -> None:
    """A module ggext/cli/list.py took the place of ``list`` in its package."""
    told("list")
    assert "\n  list " in told("--help")


@pytest.mark.usefixtures("stores")
def test_what_is_not_here_is_told_how_to_get() -> None:
    missing = CliRunner().invoke(main, ["inspect", "Owner/Other:x.gguf"])
    assert missing.exit_code == 2
    assert "ggext pull Owner/Other:x.gguf fetches it" in missing.stderr


@pytest.mark.parametrize(
    "manifest",
    [
        {"layers": []},
        {"layers": None},
        {
            "layers": [
                {"mediaType": "application/vnd.ollama.image.model", "digest": "../../x"}
            ]
        },
        {"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": 3}]},
        {"layers": [{"mediaType": "application/vnd.ollama.image.model"}]},
    ],
)
def test_a_malformed_manifest_is_passed_over(
    stores: dict[str, Path], manifest: dict[str, Any]
) -> None:
    root = Path.home() / ".ollama/models"
    ollama(
        root, "registry.ollama.ai/library/bad/latest", stores["own.gguf"], **manifest
    )
    (root / "manifests/registry.ollama.ai/library/bad/worse").write_text("{")
    assert find_stored("bad", Path()) is None
    assert find_stored("Owner/Name:other", Path()) == find_stored(
        "Owner/Name:other.gguf", Path()
    )
    assert find_stored("Owner/Name:Q9", Path()) is None
    assert find_stored("llama3.2", Path()) is not None


@pytest.mark.usefixtures("stores")
def test_parts_are_one_model() -> None:
    told("convert", "own.gguf", "set.gguf", "--split", "100K")
    listed = [model for model in stored_models(Path()) if model.name.startswith("set")]
    assert [model.name for model in listed] == ["set-00001-of-00005.gguf"]
    assert listed[0].size == sum(path.stat().st_size for path in Path().glob("set-*"))
    assert part_path(Path("set"), 0, 5).name == listed[0].name


def test_nothing_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert "no models are here; fetch one" in told("list")
    assert "next: ggext demo" in told()


# ggext pull


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder, single = tmp_path / "ggufs", tmp_path / "single"
    for made in (folder, single):
        made.mkdir()
    write_random(folder / "m-Q4_K_M.gguf", "llama")
    for name in (
        "m-Q8_0.gguf",
        "mmproj-m.gguf",
        "q2/m-00001-of-00002.gguf",
        "q2/m-00002-of-00002.gguf",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "m-Q4_K_M.gguf", folder / name)
    write_random(single / "only-F16.gguf", "qwen3")
    models = {"Owner/Some-GGUF": {"main": folder}, "Owner/One-GGUF": {"main": single}}
    with serving(Hub(models)) as hub:
        yield hub


def run(hub: Hub, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("huggingface_hub")
    changes = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    code = "from ggext.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | changes,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_pull_takes_the_usual_quantization(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "pull", "Owner/Some-GGUF")
    assert done.returncode == 0, done.stderr
    name = "Owner/Some-GGUF:m-Q4_K_M.gguf"
    assert done.stdout.startswith(f"{name}: ")
    assert done.stdout.endswith(f"next: ggext chat {name}\n")
    assert hub.fetched() == ["m-Q4_K_M.gguf"]
    assert name in run(hub, tmp_path, "list").stdout
    assert run(hub, tmp_path, "inspect", name).returncode == 0


def test_pull_takes_what_is_named(hub: Hub, tmp_path: Path) -> None:
    assert "m-Q8_0.gguf" in run(hub, tmp_path, "pull", "Owner/Some-GGUF:Q8_0").stdout
    parts = run(hub, tmp_path, "pull", "Owner/Some-GGUF:q2/m")
    assert "Owner/Some-GGUF:q2/m-00001-of-00002.gguf: " in parts.stdout
    snapshots = tmp_path / "cache/models--Owner--Some-GGUF/snapshots"
    assert len(list(snapshots.glob("*/q2/m-0000?-of-00002.gguf"))) == 2
    assert "only-F16.gguf" in run(hub, tmp_path, "pull", "Owner/One-GGUF").stdout


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        (
            "Owner/Some-GGUF:Q9",
            1,
            "has no GGUF file Q9; it has m-Q4_K_M.gguf, m-Q8_0.gguf, q2/",
        ),
        (
            "Owner/Some-GGUF:m-Q",
            1,
            "has several GGUF files; name one, ID:FILE, of m-Q4_K_M.gguf",
        ),
        ("Owner/Nothing", 1, "is neither a path on this machine nor a model at"),
        ("llama3", 2, "'llama3' is no model's id on the hub; write OWNER/NAME"),
    ],
)
def test_pull_refuses_in_one_line(
    hub: Hub, tmp_path: Path, name: str, code: int, message: str
) -> None:
    done = run(hub, tmp_path, "pull", name)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_card_of_a_stranger_is_read(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "general.license": "mit",
        "general.name": "red \x1b[31m name",
        "general.file_type": 99999,
        "general.base_model.count": 1,
        "general.base_model.0.name": "Base",
        "tokenizer.chat_template": "{{ '<|im_start|>' }}",
    }
    path = write_random(tmp_path / "x.gguf", "llama", extra_keys=keys)
    assert read_gguf(path).get("general.license") == "mit"
    output = told("show", path)
    assert "licence        mit" in output
    assert "name           red ?[31m name" in output
    assert "quantization   not said" in output
    assert "chat template  ChatML" in output
    assert json.loads(told("show", path, "--json"))["base_models"] == ["Base"]
