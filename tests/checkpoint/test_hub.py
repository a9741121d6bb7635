"""Models by their id: fetched through huggingface_hub from a stand-in of the hub on this machine.

Each command runs as its own process: huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_standin import Hub, serving
from paths import ROOT
from tiny import make_llama

from ggext.gguf.open import read_gguf

pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

DEMO = ROOT / "ggext/data/demo-model"
Run = subprocess.CompletedProcess[str]
Ggext = Callable[..., Run]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in shards, with files next to it that are not needed."""
    folder = make_llama(tmp_path_factory.mktemp("hub") / "tiny", shard="500KB")
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors"):
        (folder / name).write_text("not needed")
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("hub") / "other", seed=1)


@pytest.fixture
def hub(tiny: Path, other: Path) -> Iterator[Hub]:
    models = {
        "Owner/Tiny-1B": {"main": tiny, "v1": other},
        "Owner/Gated": {"main": tiny},
        "Owner/Demo": {"main": DEMO},
    }
    with serving(Hub(models, gated={"Owner/Gated"})) as hub:
        yield hub


def environment(hub: Hub, **changes: str) -> dict[str, str]:
    return os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"} | changes


COMMAND = [sys.executable, "-c", "from ggext.cli import main; main()"]


@pytest.fixture
def ggext(hub: Hub, tmp_path: Path) -> Ggext:
    def run(*arguments: str, **changes: str) -> Run:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment(hub, **changes),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def same_tensors(a: Path, b: Path) -> bool:
    one, two = read_gguf(a), read_gguf(b)
    return list(one.tensors) == list(two.tensors) and all(
        bytes(one.tensor_data(n)) == bytes(two.tensor_data(n)) for n in one.tensors
    )


def refused(run: Run, *parts: str) -> None:
    assert run.returncode == 1, run.stdout + run.stderr
    assert run.stderr.startswith("ggext: ")
    assert run.stderr.count("\n") == 1
    for part in parts:
        assert part in run.stderr


def test_an_id_is_fetched_converted_and_cached(
    hub: Hub, ggext: Ggext, tiny: Path, tmp_path: Path
) -> None:
    first = ggext("convert", "Owner/Tiny-1B", "--yarn", "4")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("Tiny-1B: llama, 21 tensors")
    assert first.stderr == ""  # no bars where no one watches
    assert read_gguf(tmp_path / "Tiny-1B-yarn4.gguf").get("general.name") == "Tiny 1B"
    shards = {p.name for p in tiny.glob("model-*.safetensors")}
    assert len(shards) > 1
    wanted = {
        "README.md",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(hub.fetched()) == shards | wanted | {"model.safetensors.index.json"}
    assert ggext("convert", str(tiny), "local.gguf", "--yarn", "4").returncode == 0
    assert same_tensors(tmp_path / "Tiny-1B-yarn4.gguf", tmp_path / "local.gguf")

    hub.requests.clear()
    assert ggext("convert", "Owner/Tiny-1B", "again.gguf").returncode == 0
    assert hub.fetched() == []
    hub.requests.clear()
    offline = ggext("convert", "Owner/Tiny-1B", "offline.gguf", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert hub.requests == []


def test_a_revision_is_what_is_converted(
    hub: Hub, ggext: Ggext, other: Path, tmp_path: Path
) -> None:
    assert (
        ggext("convert", "Owner/Tiny-1B", "v1.gguf", "--revision", "v1").returncode == 0
    )
    assert ggext("convert", str(other), "other.gguf").returncode == 0
    assert same_tensors(tmp_path / "v1.gguf", tmp_path / "other.gguf")
    commit = hub.commit("Owner/Tiny-1B", "v1")
    assert (
        ggext(
            "convert", "Owner/Tiny-1B", "commit.gguf", "--revision", commit
        ).returncode
        == 0
    )
    run = ggext("convert", "Owner/Tiny-1B", "--revision", "v9")
    refused(
        run, "Owner/Tiny-1B at revision 'v9' does not exist", "/Owner/Tiny-1B/tree/main"
    )
    run = ggext("convert", str(other), "--revision", "v1")
    assert run.returncode == 2
    assert "--revision v1 is for models on the hub" in run.stderr


def test_a_dry_run_fetches_no_weights(
    hub: Hub, ggext: Ggext, tiny: Path, other: Path, tmp_path: Path
) -> None:
    """The plan is the same as of the folder, sharded or not, and is made of headers alone."""
    for revision, folder in (("main", tiny), ("v1", other)):
        asked = ("--yarn", "4", "--dry-run")
        planned = ggext("convert", "Owner/Tiny-1B", "--revision", revision, *asked)
        assert planned.returncode == 0, planned.stderr
        local = ggext("convert", str(folder), *asked)
        whole = [
            line
            for line in local.stdout.splitlines()
            if "also there and not read" not in line
        ]
        assert planned.stdout.splitlines()[1:] == whole[1:]
    ranges = {asked for _, path, asked in hub.requests if path.endswith(".safetensors")}
    assert ranges == {"bytes=0-100000"}
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.gguf"))


def test_a_dry_run_says_what_is_wrong_with_a_header(
    hub: Hub, ggext: Ggext, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "broken")
    (folder / "model.safetensors.index.json").unlink()
    hub.models["Owner/Broken"] = {"main": folder}
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**18]}
    header = json.dumps({"model.norm.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header
    )
    refused(
        ggext("convert", "Owner/Broken", "--dry-run"),
        "the model Owner/Broken",
        "File too large",
    )


def test_a_single_file_goes_before_an_index_there_too(
    hub: Hub, ggext: Ggext, tiny: Path, tmp_path: Path
) -> None:
    """As on disk; the shards of the older index are not fetched, an adapter next to them is reported."""
    folder = Path(shutil.copytree(tiny, tmp_path / "both"))
    assert (folder / "model.safetensors.index.json").is_file()
    make_llama(tmp_path / "single", seed=7)
    shutil.copy(tmp_path / "single" / "model.safetensors", folder)
    (folder / "adapter_config.json").write_text("{}")
    hub.models["Owner/Both"] = {"main": folder}
    done = ggext("convert", "Owner/Both", "a.gguf")
    assert done.returncode == 0, done.stderr
    assert "the adapter is not in the file" in done.stdout
    assert not [name for name in hub.fetched() if name.startswith("model-0")]
    assert ggext("convert", str(tmp_path / "single"), "b.gguf").returncode == 0
    assert same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_an_adapter_on_the_hub_is_said(hub: Hub, ggext: Ggext, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    base = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(base))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    hub.models["Owner/Adapter"] = {"main": folder}
    refused(ggext("convert", "Owner/Adapter"), "is a LoRA adapter of 'some/base'")


def test_a_lost_connection_goes_on_at_the_byte(
    hub: Hub, ggext: Ggext, tmp_path: Path
) -> None:
    """huggingface_hub writes pieces of 10 MiB, so a larger file is needed."""
    piece = 10 << 20
    folder = make_llama(tmp_path / "large", intermediate_size=6_000)
    assert (folder / "model.safetensors").stat().st_size > 1.5 * piece
    hub.models["Owner/Large"] = {"main": folder}
    hub.cut_after["model.safetensors"] = piece + 1000
    assert ggext("convert", "Owner/Large", "a.gguf").returncode == 0
    assert resumed(hub) == [f"bytes={piece}-"]
    assert ggext("convert", str(folder), "b.gguf").returncode == 0
    assert same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_a_run_that_was_killed_keeps_the_files_that_had_arrived(
    hub: Hub, ggext: Ggext, tiny: Path, tmp_path: Path
) -> None:
    last = max(p.name for p in tiny.glob("model-*.safetensors"))
    hub.stall_after[last] = 1000
    arguments = ["convert", "Owner/Tiny-1B", "x.gguf"]
    killed = subprocess.Popen(
        [*COMMAND, *arguments], env=environment(hub), cwd=tmp_path
    )
    shards = len(list(tiny.glob("model-*.safetensors")))
    while len(list(tmp_path.rglob("snapshots/*/model-*.safetensors"))) < shards - 1:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    hub.stalled.set()
    assert not (tmp_path / "x.gguf").exists()
    hub.requests.clear()
    assert ggext(*arguments).returncode == 0
    assert hub.fetched() == [last]


def resumed(hub: Hub) -> list[str]:
    return [
        first
        for method, path, first in hub.requests
        if method == "GET" and path.endswith("model.safetensors") and first
    ]


def test_each_failure_has_its_own_line(hub: Hub, ggext: Ggext, tmp_path: Path) -> None:
    refused(
        ggext("convert", "Owner/None"),
        "Owner/None is neither a path on this machine nor a model at",
        "spelling",
    )
    run = ggext("convert", "Owner/Gated")
    refused(
        run,
        "the model Owner/Gated is gated: accept its terms at",
        "/Owner/Gated",
        "HF_TOKEN",
    )
    assert ggext("convert", "Owner/Gated", "x.gguf", HF_TOKEN=Hub.TOKEN).returncode == 0
    run = ggext("convert", "Owner/Demo", HF_HUB_OFFLINE="1")
    refused(
        run,
        "the model Owner/Demo is not whole in the cache",
        "HF_HUB_OFFLINE forbids to fetch it",
    )
    run = ggext("convert", "Owner/Demo", HF_ENDPOINT="http://127.0.0.1:1")
    refused(
        run,
        "could not be fetched from http://127.0.0.1:1",
        "files that have arrived whole are kept",
    )
    refused(
        ggext("convert", "no such model"),
        "no such model does not exist",
        "Qwen/Qwen3-0.6B",
    )
    refused(ggext("convert", "here/model.gguf"), "here/model.gguf does not exist")
    assert hub.models.keys() >= {"Owner/Demo"}
    assert {p.name for p in tmp_path.glob("*.gguf")} == {"x.gguf"}


def test_a_repository_that_is_no_model(hub: Hub, ggext: Ggext, tmp_path: Path) -> None:
    empty, headless = tmp_path / "empty", tmp_path / "headless"
    empty.mkdir()
    headless.mkdir()
    (empty / "README.md").write_text("x")
    hub.models |= {"Owner/Empty": {"main": empty}, "Owner/Headless": {"main": headless}}
    (headless / "config.json").write_text((DEMO / "config.json").read_text())
    refused(ggext("convert", "Owner/Empty"), "the model Owner/Empty has no config.json")
    refused(
        ggext("convert", "Owner/Headless"),
        "has neither model.safetensors nor pytorch_model.bin",
    )


def test_what_cannot_be_converted_is_refused_before_its_weights_come(
    hub: Hub, ggext: Ggext, tiny: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny / "config.json").read_text())
    for name, change in (
        ("Unknown", {"model_type": "mystery"}),
        ("Wrong", {"hidden_act": "gelu"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for path in tiny.iterdir():
            (folder / path.name).symlink_to(path)
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config | change))
        hub.models[f"Owner/{name}"] = {"main": folder}
    refused(
        ggext("convert", "Owner/Unknown"),
        "model_type 'mystery' is not a family that ggext converts",
    )
    refused(ggext("convert", "Owner/Wrong"), "hidden_act is 'gelu'")
    assert "config.json" in hub.fetched()
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]


def test_a_folder_of_that_name_goes_first(
    hub: Hub, ggext: Ggext, other: Path, tmp_path: Path
) -> None:
    (tmp_path / "Owner").mkdir()
    (tmp_path / "Owner" / "Tiny-1B").symlink_to(other)
    assert ggext("convert", "Owner/Tiny-1B", "x.gguf").returncode == 0
    assert hub.requests == []


def test_without_huggingface_hub_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ggext.checkpoint import hub
    from ggext.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", None)
    with pytest.raises(MissingExtraError, match=r"ggext\[hub\]"):
        hub.fetch(Path("Owner/Name"))


def test_from_an_id_to_a_chat(ggext: Ggext, tmp_path: Path) -> None:
    """The whole way of a user: fetch, bake, quantize, verify, ask."""
    pytest.importorskip("llama_cpp")
    run = ggext("convert", "Owner/Demo", "demo.gguf", "--yarn", "4", "--type", "Q4_K_M")
    assert run.returncode == 0, run.stderr
    assert "context: 256 → 1,024 tokens" in run.stdout
    run = ggext(
        "verify",
        "demo.gguf",
        "--reference",
        "Owner/Demo",
        "--level",
        "table,kernel,graph,logits",
        "--tokens",
        "300",
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "tokens: exact " in run.stdout
    text = tmp_path / "text.txt"
    text.write_text("Look for the lamp upstairs. Look for the key below.")
    run = ggext(
        "chat",
        "demo.gguf",
        "-f",
        "text.txt",
        "-p",
        "Where is the lamp?",
        "--temperature",
        "0",
    )
    assert run.returncode == 0, run.stderr
    assert "lamp" in run.stdout
