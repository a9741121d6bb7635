"""A file that was not seen before is loaded in a child first; what it does not survive is said."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from paths import SUPPORT

pytest.importorskip("llama_cpp")

from ggext.errors import EngineDiedError, GgufError, ModelError
from ggext.folders import cache_folder
from ggext.gguf.open import read_gguf
from ggext.runtime import child, first_load, precheck
from ggext.runtime.child import Child
from ggext.runtime.model import CancelledError, Model


@pytest.fixture(autouse=True)
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The children that are started, with trials as a user has them."""
    monkeypatch.delenv("GGEXT_FIRST_LOAD")
    started: list[str] = []

    class Counted(Child):
        def __init__(self, target: str) -> None:
            started.append(target)
            super().__init__(target)

    monkeypatch.setattr(first_load, "Child", Counted)
    return started


@pytest.fixture
def path(demo_gguf: Path, tmp_path: Path) -> Path:
    return shutil.copy(demo_gguf, tmp_path / "model.gguf")


def kept() -> list[str]:
    folder = cache_folder() / "loads"
    return [file.name for file in folder.iterdir()] if folder.exists() else []


def test_a_file_is_tried_once(path: Path, trials: list[str]) -> None:
    for _ in range(2):
        Model.open(path).close()
        assert (len(trials), len(kept())) == (1, 1)
    os.utime(path, (1, 1))
    Model.open(path).close()
    assert len(trials) == 2
    Model.open(path, gpu_layers=0).close()  # perhaps on another device
    assert len(trials) == 3


def test_another_library_tries_it_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = read_gguf(path)
    before = first_load._identity(header, None)
    assert any(file.name.startswith("libllama") for file in first_load._libraries())
    library = tmp_path / "libllama.so"
    library.write_bytes(b"")
    monkeypatch.setattr(first_load, "_libraries", lambda: iter([library]))
    assert first_load._identity(header, None) != before


def deadly(folder: Path, demo_gguf: Path) -> Path:
    """A file that ends the process in llama.cpp where nothing looks at it before: a key that its
    loader asserts."""
    data = demo_gguf.read_bytes()
    value = read_gguf(demo_gguf).arch_keys()["attention.layer_norm_rms_epsilon"]
    assert data.count(struct.pack("<f", value)) >= 1
    at = data.index(struct.pack("<f", value), data.index(b"layer_norm_rms_epsilon"))
    path = folder / "deadly.gguf"
    path.write_bytes(data[:at] + struct.pack("<f", -1.0) + data[at + 4 :])
    return path


def test_a_file_that_ends_the_process_ends_a_child(
    demo_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: list[str]
) -> None:
    path = deadly(tmp_path, demo_gguf)
    with pytest.raises(GgufError, match="layer_norm_rms_epsilon"):
        Model.open(path)
    assert trials == []
    # What the table of known assertions does not have, here and in the child.
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    monkeypatch.setattr(precheck, "refuse_what_aborts", lambda _: None)
    monkeypatch.setattr(first_load, "_SERVE", "dying:loads_without_precheck")
    for _ in range(2):
        with pytest.raises(
            EngineDiedError, match=r"deadly\.gguf was tried.*SIGABRT.*eps"
        ) as died:
            Model.open(path)
        assert died.value.signal == "SIGABRT"
        assert "\n" not in str(died.value)
    assert (len(trials), kept()) == (2, [])


def test_what_is_refused_is_refused_by_the_load_itself(
    tmp_path: Path, demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(demo_gguf.read_bytes().replace(b"blk.0.attn_q", b"blk.0.attn_x"))
    monkeypatch.setattr(precheck, "refuse_what_aborts", lambda _: None)
    monkeypatch.setattr(first_load, "_SERVE", "dying:loads_without_precheck")
    with pytest.raises(
        ModelError, match=r"other\.gguf cannot be loaded: llama.cpp says: .*attn"
    ):
        Model.open(path)
    assert kept() == []


def test_the_progress_goes_through_both_loads_and_cancels_either(path: Path) -> None:
    fractions: list[float] = []
    Model.open(
        path, progress=lambda fraction: fractions.append(fraction) is None
    ).close()
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= 0.5 < fractions[-1] == 1.0
    os.utime(path, (1, 1))
    with pytest.raises(
        CancelledError
    ):  # of the trial, or of the load where that was over
        Model.open(path, progress=lambda fraction: fraction > 1)


def test_an_isolated_model_needs_none(path: Path, trials: list[str]) -> None:
    pytest.importorskip("jinja2")
    from ggext import Model as Isolated

    with Isolated(path, context=256, isolated=True) as model:
        assert model.count("map") > 0
    assert (trials, kept()) == ([], [])


def test_a_program_that_cannot_start_a_child_loads_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    Model.open(path).close()
    assert "is loaded without a trial" in caplog.text
    assert kept() == []


def test_an_interrupt_in_a_trial_leaves_nothing(path: Path) -> None:
    code = (
        "import os, signal, sys, threading, time\n"
        "from ggext.runtime import child\n"
        "from ggext.runtime.llama import lib\n"
        "from ggext.runtime.model import Model\n"
        "lib()\n"  # its kernels have a child of their own
        "def interrupt():\n"
        "    while not child._children:\n"
        "        time.sleep(0.001)\n"
        "    print(next(iter(child._children)).pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        # as in a terminal, whatever started the tests
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Thread(target=interrupt).start()\n"
        "Model.open(sys.argv[1])\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if "GGEXT" not in name
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
    assert child.is_child() is False
