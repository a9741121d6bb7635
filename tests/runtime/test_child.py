"""A child process: what it returns, what its death is called, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import SUPPORT
from processes import gone

from ggext.errors import ContextFullError, EngineDiedError, ModelError, UsageError
from ggext.runtime import child


def test_a_function_is_called_and_what_it_prints_goes_nowhere(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert child.call("dying:doubled", [1, 2**40]) == [2, 2**41]
    assert capfd.readouterr() == ("", "")


def test_errors_are_raised_as_they_were() -> None:
    with pytest.raises(UsageError, match=r"^no such thing$"):
        child.call("dying:refused", "no such thing")
    with pytest.raises(ContextFullError) as full:
        child.call("dying:full")
    assert (full.value.requested, full.value.used, full.value.available) == (5, 3, 1)
    with pytest.raises(ModelError, match=r"^ZeroDivisionError: one by none$"):
        child.call("dying:broken")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGABRT", r"died of SIGABRT \(it gave up\): tensor.c:12: GGML_ASSERT"),
        ("SIGSEGV", r"died of SIGSEGV \(a segmentation fault\)$"),
        ("SIGILL", r"an instruction that this processor does not have"),
        ("SIGKILL", r"as the system does where memory runs out"),
    ],
)
def test_a_death_is_named(name: str, words: str) -> None:
    with pytest.raises(EngineDiedError, match=words) as died:
        child.call("dying:killed", name)
    assert died.value.signal == name
    assert "\n" not in str(died.value)


def test_an_end_without_a_signal_is_named_too() -> None:
    with pytest.raises(
        EngineDiedError, match="ended with status 7: out of luck"
    ) as died:
        child.call("dying:exits", 7)
    assert (died.value.signal, died.value.status) == (None, 7)


def test_time_runs_out() -> None:
    with pytest.raises(
        ModelError, match=r"dying:sleeps did not end within 0\.2 seconds"
    ):
        child.call("dying:sleeps", timeout=0.2)


def test_an_interrupt_is_the_parents_alone() -> None:
    assert child.call("dying:interrupts_its_group") == "still here"


def test_the_environment_has_no_debugger_in_it() -> None:
    """llama.cpp starts one at an abort, which would outlive the child."""
    assert child.call("dying:environment", ["GGML_NO_BACKTRACE"]) == {
        "GGML_NO_BACKTRACE": "1"
    }


def test_a_conversation_ends_with_the_parents_wish() -> None:
    with child.Child("dying:echoes") as echo:
        for message in ({"text": "é\ud800"}, [1.5, None], "x" * 3_000_000):
            echo.send(message)
            assert echo.receive() == message
        pid = echo.pid
    assert gone(pid)


def test_what_is_no_frame_ends_the_conversation() -> None:
    with child.Child("dying:talks_nonsense") as talker:
        assert talker.receive() is None
        pid = talker.pid
    assert gone(pid)


@pytest.mark.parametrize("end", ["exit", "kill", "fork"])
def test_a_child_ends_with_its_parent(end: str) -> None:
    """Also where a fork of the parent lives on, which has copies of its pipes."""
    code = (
        "import os, signal, sys, time\n"
        "from ggext.runtime.child import Child\n"
        "child = Child('dying:holds')\n"
        "fork = os.fork() if sys.argv[1] == 'fork' else 1\n"
        "if not fork:\n"
        "    os.close(1)\n"
        "    time.sleep(60)\n"
        "    os._exit(0)\n"
        "print(child.pid, fork, flush=True)\n"
        "if sys.argv[1] != 'exit':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, end],
        stdout=subprocess.PIPE,
        env=environment,
        timeout=60,
        check=False,
    )
    pid, fork = map(int, done.stdout.split())
    try:
        assert gone(pid)
    finally:
        if end == "fork":
            os.kill(fork, signal.SIGKILL)


def test_a_frozen_program_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(UsageError, match=r"freeze_support\(\) as the first statement"):
        child.call("dying:doubled", [])


def test_a_frozen_program_starts_itself(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(
        f"#!{sys.executable}\n"
        f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n"
        "from ggext.runtime.child import call, run_if_child\n"
        "run_if_child()\n"
        "sys.frozen, sys.executable = True, sys.argv[0]\n"
        "print(call('dying:doubled', [21]))\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[42]\n"


def test_an_interrupt_ends_the_interpreter_at_once() -> None:
    """The clock of a limited call was waited for at its end."""
    code = (
        "import os, signal, threading\n"
        "from ggext.runtime.child import call\n"
        # as in a terminal, whatever started the tests
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "call('dying:sleeps', timeout=600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SUPPORT)}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    assert time.monotonic() - begun < 30
