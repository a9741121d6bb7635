"""A library changes nothing of its process, and keeps nothing of it."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from ggext import _native
from ggext.folders import cache_folder
from ggext.gguf.types import F32
from ggext.gguf.writer import TensorToWrite, write_gguf


def write(path: Path) -> None:
    tensor = TensorToWrite("a", (64,), F32, 256, lambda: [bytes(256)])
    write_gguf(path, {}, [tensor])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_gets_the_users_mode_without_a_touch_of_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    """It is the whole process's: files of other threads became world-writable meanwhile."""
    set_umask = os.umask
    before = set_umask(umask)
    touched: list[int] = []
    monkeypatch.setattr(os, "umask", lambda mask: touched.append(mask) or umask)
    try:
        for _ in range(2):  # also over what is there
            write(tmp_path / "model.gguf")
    finally:
        set_umask(before)
    assert touched == []
    assert stat.S_IMODE((tmp_path / "model.gguf").stat().st_mode) == 0o666 & ~umask


def test_the_switch_interval_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two conversions that overlapped left it changed for good."""
    changed: list[float] = []
    monkeypatch.setattr(sys, "setswitchinterval", changed.append)
    write(tmp_path / "model.gguf")
    assert changed == []


def test_errors_of_llama_cpp_are_told_in_their_own_thread() -> None:
    pytest.importorskip("llama_cpp")
    from ggext.runtime import llama

    module = llama.lib()
    llama.clear_log()

    def fail() -> None:
        module.llama_model_load_from_file(
            b"/nowhere.gguf", module.llama_model_default_params()
        )
        told.append(llama.reason())

    told: list[str] = []
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "/nowhere.gguf" in told[0]
    assert llama.reason() == "it gave no reason"


@pytest.mark.parametrize("same_thread", [True, False])
def test_models_that_are_opened_at_once_know_their_own_copied_weights(
    demo_gguf: Path, same_thread: bool
) -> None:
    """The plan of a context adds them to the free memory."""
    pytest.importorskip("llama_cpp")
    from ggext.runtime import llama
    from ggext.runtime.model import Model

    def log_of_another(fraction: float) -> bool:
        if fraction == 0:
            if same_thread:
                with llama.listening():
                    say()
            else:
                thread = threading.Thread(target=say)
                thread.start()
                thread.join()
        return True

    def say() -> None:
        """What llama.cpp logs of a model whose weights it copies."""
        llama.clear_log()
        log = llama.lib().llama_log_callback(_native.log_callback())
        log(2, b"load_tensors:   CPU_REPACK model buffer size =   700.00 MiB\n", None)

    with (
        Model.open(demo_gguf) as alone,
        Model.open(demo_gguf, progress=log_of_another) as model,
    ):
        assert model.copied == alone.copied < 700 * 2**20


@pytest.fixture(scope="module")
def cache_of_a_module() -> Path:
    return cache_folder()


def test_fixtures_of_a_module_see_nothing_of_the_user(
    cache_of_a_module: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert cache_of_a_module.is_relative_to(tmp_path_factory.getbasetemp())
