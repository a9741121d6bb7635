"""`ggext doctor`: what it finds here, and what it says of installations that lack something or are
broken."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggext import __version__, native
from ggext.cli import main
from ggext.doctor import (
    Finding,
    Report,
    backends,
    examine,
    machine,
    reading,
    runs,
    versions,
)
from ggext.errors import ModelError
from ggext.footprint import defaults, speeds
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT, LLAMA_CPP_PYTHON


def findings(found: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def step(name: str) -> dict[str, Finding]:
    """What one step finds, in this process: what a test put in its place counts."""
    return findings(runs.findings([name], lambda _: None, in_child=False))


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if the package were not installed."""
    version = metadata.version

    def looked_up(name: str) -> str:
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", looked_up)
    monkeypatch.setitem(
        __import__("sys").modules,
        package.replace("-python", "").replace("-", "_"),
        None,
    )


def test_here_nothing_is_wrong_and_everything_was_tried() -> None:
    pytest.importorskip("llama_cpp")
    done = CliRunner().invoke(main, ["doctor", "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert found["healthy"] is True
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert by_name["ggext"]["value"].startswith(__version__)
    assert by_name["llama-cpp-python"]["value"] == LLAMA_CPP_PYTHON
    assert by_name["llama.cpp"]["value"].startswith((LLAMA_CPP_COMMIT[:7], "unknown"))
    assert by_name["device CPU"]["value"]
    assert by_name["rotation"]["value"].startswith("CPU, ")
    assert by_name["native rotation"]["value"].endswith(
        "off float64 at most, to position 131,072"
    )
    assert by_name["embedded model"]["value"].startswith("Where is the ")
    assert by_name["form of the cache"]["value"].startswith(
        "100 tokens read as they were written; keys turned "
    )
    assert len(by_name) == len(found["findings"])
    assert all(
        set(finding) == {"part", "name", "state", "value", "remedy"}
        for finding in found["findings"]
    )


def test_no_timer_runs_on_after_ctrl_c() -> None:
    """The process ended a quarter of an hour later."""
    pytest.importorskip("llama_cpp")

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(runs.findings(["native rotation"], stop, in_child=True))
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            assert thread.finished.is_set()


def test_without_llama_cpp_it_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "llama-cpp-python")
    report = examine()
    found = findings(report.findings)
    assert found["llama-cpp-python"] == Finding(
        "versions",
        "llama-cpp-python",
        "missing",
        "for chat, demo, K-quants, verify to the logits",
        'pip install "ggext[run]"',
    )
    assert report.healthy
    assert "embedded model" not in found
    assert found["native rotation"].state == "ok"


def test_a_needed_package_that_is_missing_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "tqdm")
    found = findings(versions.findings())["tqdm"]
    assert (found.state, found.value, found.remedy) == (
        "wrong",
        "needed",
        'pip install "tqdm>=4.66"',
    )
    assert not Report((found,)).healthy


def test_another_version_than_the_pinned_one_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        metadata, "requires", lambda _: ['click==7.0; extra == "run"', "numpy>=1.26"]
    )
    found = findings(versions.findings())
    installed = metadata.version("click")
    assert found["click"] == Finding(
        "versions",
        "click",
        "wrong",
        f"{installed}, but ggext needs ==7.0",
        'pip install "click==7.0"',
    )
    assert found["numpy"].state == "ok"


@pytest.mark.parametrize(
    ("version", "wanted", "matches"),
    [
        ("1.2.3", "", True),
        ("1.10", ">=1.9", True),
        ("1.2", ">=1.2.1", False),
        ("2.13.0+cpu", "==2.13", True),
        ("0.3.37", "==0.3.35", False),
        ("3.0", "<=3.0", True),
        ("3.1", "~=3.0", True),
        ("4.0", "~=3.0", False),
        ("3.0", "!=3.0", False),
        ("5.1rc1", ">=5,<6", True),
        ("6.0", ">=5,<6", False),
    ],
)
def test_versions_are_compared_as_pip_does(
    version: str, wanted: str, matches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: [f"numpy{wanted}"])
    monkeypatch.setattr(metadata, "version", lambda _: version)
    numpy = next(finding for finding in versions.findings() if finding.name == "numpy")
    assert numpy.state == ("ok" if matches else "wrong")


def test_the_packages_are_those_of_the_distribution() -> None:
    found = findings(versions.findings())
    assert {
        "click",
        "gguf",
        "numpy",
        "tqdm",
        "rich",
        "jinja2",
        "huggingface_hub",
        "torch",
        "matplotlib",
    } <= set(found)
    assert "pytest" not in found


def test_the_cores_that_a_container_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "cores_of_affinity", lambda: 8)
    monkeypatch.setattr(machine, "cores_of_affinity", lambda: 8)
    for module in (machine, defaults):
        monkeypatch.setattr(module, "core_quota", lambda: 2.5)
    monkeypatch.setattr(machine, "free_memory", lambda: 3 << 29)
    found = findings(machine.findings())
    assert found["cores"].value.endswith(
        "2.5 by its container's quota: a model runs with 2"
    )
    assert found["memory"].value == "1.5 GiB free"


def test_places_that_cannot_be_written_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost there, and what names another place; nothing is left where one can."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    found = findings(machine.findings())
    if not Path("/proc").is_dir():
        pytest.skip("there is no /proc, in which no one can write")
    assert found["cache"] == Finding(
        "machine", "cache", "ok", str(tmp_path / "cache" / "ggext")
    )
    assert found["chats"].state == "missing"
    assert found["chats"].value.endswith("chats and what was typed are not kept")
    assert found["chats"].remedy == "XDG_STATE_HOME=FOLDER ggext …"
    assert Report(tuple(found.values())).healthy
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("driver", "kind"),
    [("proc/driver/nvidia/version", "cuda"), ("dev/kfd", "rocm"), ("proc/none", None)],
)
def test_a_gpu_is_known_by_its_driver(
    driver: str, kind: str | None, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(backends.platform, "system", lambda: "Linux")
    (tmp_path / driver).parent.mkdir(parents=True)
    (tmp_path / driver).touch()
    assert backends.gpu_here(tmp_path) == kind


@pytest.mark.parametrize(
    ("kind", "flag", "rotation"),
    [("cuda", "CUDA", True), ("metal", "METAL", True), ("rocm", "HIP", False)],
)
def test_a_gpu_that_llama_cpp_was_built_without(
    kind: str, flag: str, rotation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    from ggext.runtime import devices

    monkeypatch.setattr(backends, "gpu_here", lambda: kind)
    monkeypatch.setattr(devices, "gpu_memory", list)
    monkeypatch.setattr(native, "available", lambda device: device == "cpu")
    found = {**step("devices"), **findings(backends.own_findings())}
    missing = found["llama.cpp on the GPU"]
    assert missing.state == "missing"
    assert missing.value.startswith(f"built without {kind}")
    assert missing.remedy == (
        f'CMAKE_ARGS="-DGGML_{flag}=on" pip install --force-reinstall --no-deps --no-cache-dir '
        '"llama-cpp-python==' + LLAMA_CPP_PYTHON + '"'
    )
    assert (f"rotation on {kind}" in found) is rotation
    if rotation:
        command = (
            f"pip install . --config-settings=cmake.define.GGEXT_{kind.upper()}=ON"
        )
        assert found[f"rotation on {kind}"].remedy == command


def test_a_library_that_is_not_the_known_one_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llama_cpp")
    from ggext.runtime import devices, ggml

    monkeypatch.setattr(devices, "commit", lambda: "abcdef0")
    found = step("llama.cpp")["llama.cpp"]
    assert (found.state, found.value) == (
        "wrong",
        f"abcdef0, but ggext reads files as {LLAMA_CPP_COMMIT} does",
    )

    def refuse() -> None:
        raise ModelError("a tensor has 8 bytes")

    monkeypatch.undo()
    monkeypatch.setattr(ggml, "library", refuse)
    found = step("llama.cpp")["llama.cpp"]
    assert (found.state, found.value) == ("wrong", "a tensor has 8 bytes")
    assert "--force-reinstall" in found.remedy


def test_a_rotation_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "rotate", lambda rows, *_, **__: rows)

    def refuse(_: str) -> None:
        raise ModelError("no process can be started")

    monkeypatch.setattr(runs, "Child", refuse)  # then in this process
    monkeypatch.setattr(runs, "possible_steps", lambda _: ["native rotation"])
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "  WRONG   native rotation" in done.stdout
    assert done.stdout.endswith("wrong, see above\n")


def test_a_cache_of_another_form_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    from ggext.runtime import state

    monkeypatch.setattr(state, "ELEMENT_BYTES", {0: 4, 1: 4})
    found = step("form of the cache")["form of the cache"]
    assert found.state == "wrong"
    assert "in a form that ggext cannot edit" in found.value


def test_a_model_that_answers_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    from ggext import demo

    example = demo.Example("Where is the map?", "Look below.", {"yarn": "Look up."})
    monkeypatch.setattr(demo, "spot_check", lambda _: example)
    found = step("embedded model")["embedded model"]
    assert (found.state, found.value) == (
        "wrong",
        "Where is the map? Look up. (it should say 'Look below.')",
    )


@pytest.mark.parametrize(
    ("ratios", "length", "words"),
    [
        ({256: 0.9, 512: 0.8}, speeds.ANY_LENGTH, "is used on the CPU:"),
        ({256: 0.9, 512: 1.1, 1024: 0.8}, 256, "in contexts of up to 256 tokens:"),
        ({256: 0.98, 512: 0.8}, 0, "is not used on the CPU:"),
    ],
)
def test_flash_attention_is_used_up_to_where_it_was_faster(
    ratios: dict[int, float], length: int, words: str
) -> None:
    assert reading.faster_until(ratios) == length
    assert words in reading.in_words(length, ratios)


def test_what_was_measured_is_used_by_the_next_context(
    monkeypatch: pytest.MonkeyPatch, demo_gguf: Path
) -> None:
    pytest.importorskip("llama_cpp")
    from ggext.runtime.engine import Model, Session, SessionOptions

    speeds._kept.cache_clear()
    small = reading.Shape(1, 64, 2, 1, 32, 64, 288, tied=True)
    monkeypatch.setattr(reading, "SHAPES", (small,))
    monkeypatch.setattr(reading, "DEPTHS", (0, 32))
    monkeypatch.setattr(reading, "LENGTHS", (32, 64))
    monkeypatch.setattr(reading, "ROUNDS", 2)
    monkeypatch.setattr(reading, "faster_until", lambda _: 32)
    found = step("speed of reading")["heads of 32"]
    assert found.state == "ok"
    assert re.search(r"reads \d+\.\d\d × at 32", found.value)
    with Model.open(demo_gguf) as model:
        for tokens, flash in ((32, True), (128, False)):
            with Session(model, SessionOptions(tokens)) as session:
                assert session.cache.flash_attention is flash
    speeds._kept.cache_clear()


def test_the_time_of_a_text_grows_with_what_its_tokens_attend_to() -> None:
    """A token takes 1 s and a thousandth of a second for each that it attends to."""
    times = {depth: 1 + (depth + 256) / 1000 for depth in (0, 1024, 8192)}
    for length in (512, 1000, 8192):
        real = length + length**2 / 2000
        assert reading.text_seconds(times, length) == pytest.approx(real, rel=0.06)


def test_nothing_is_timed_after_where_flash_attention_has_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llama_cpp")
    depths: list[int] = []

    def in_turn(readers: Sequence[reading.Reader], rounds: int) -> list[list[float]]:
        depths.append(len(readers[0].session.tokens))
        return [[1.0 if depths[-1] < 40 else 1.4] * rounds, [1.1] * rounds]

    monkeypatch.setattr(reading, "in_turn", in_turn)
    monkeypatch.setattr(reading, "LENGTHS", (32, 512, 4096))
    small = reading.Shape(1, 64, 2, 1, 32, 64, 288, tied=True)
    ratios = reading.measure(small, (0, 20, 40, 80, 3600), 2)
    assert depths == [0, 20, 40]
    assert ratios[32] == pytest.approx(1 / 1.1)
    assert list(ratios) == [32, 512]


def test_nothing_is_measured_unasked() -> None:
    assert not set(runs.MEASUREMENTS) & set(runs.possible_steps(True))
    help_text = CliRunner().invoke(main, ["doctor", "--help"]).stdout
    assert "--measure" in help_text
