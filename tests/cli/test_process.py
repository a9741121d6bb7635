"""What a command leaves behind, whatever is closed, full or interrupted: one line, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggext.cli import main

pytest.importorskip("llama_cpp")
pytest.importorskip("rich")

GGEXT = (sys.executable, "-c", "from ggext.__main__ import main; main()")
# Says that Python is up and has found the program: what comes before that is Python's own.
READY = (
    sys.executable,
    "-c",
    "import os, sys; from ggext.__main__ import main; os.write(int(sys.argv.pop(1)), b'!'); main()",
)


@pytest.fixture(scope="module")
def question(demo_gguf: Path) -> list[str]:
    return ["chat", str(demo_gguf), "-p", "Where is the map?", "--temperature", "0"]


def sh(command: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    script = f'"$@" {redirection}'
    return subprocess.run(
        ["sh", "-c", script, "sh", *GGEXT, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


needs_full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="there is no /dev/full"
)


@needs_full
@pytest.mark.parametrize(
    "command",
    [["--help"], ["chat", "--help"], ["question"], ["question", "--json"], ["chats"]],
)
def test_a_full_disk_under_the_output_is_one_line(
    question: list[str], command: list[str]
) -> None:
    """It was a traceback of 40 lines."""
    command = [*question, *command[1:]] if command[0] == "question" else command
    done = sh(command, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ggext: the output cannot be written: No space left on device"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_leave_no_traceback(question: list[str], closed: str) -> None:
    done = sh(question, closed)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert ">&-" in closed[:4] or " >&-" in closed or done.stdout.strip()


@pytest.mark.parametrize("after", [0.0, 0.05, 0.2, 0.5, 1.0, 2.0])
def test_ctrl_c_at_any_moment_is_130(question: list[str], after: float) -> None:
    """Also while modules are imported, and when the interpreter ends."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*READY, str(writer), *question],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[writer],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    time.sleep(0.02 + after)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (0, 130, -signal.SIGINT)  # a shell says 130 to both
    assert b"Traceback" not in error


def test_a_missing_extra_is_named() -> None:
    """`pip install .` alone: it was ModuleNotFoundError: No module named 'rich'."""
    for module, package in (("rich", "rich"), ("llama_cpp", "llama-cpp-python")):
        code = (
            f"import sys; sys.modules[{module!r}] = None; from ggext.cli import main; "
            "main(['chat', sys.argv[1], '-p', 'Hi'])"
        )
        command = [sys.executable, "-c", code, __file__]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr == (
            f"ggext: ggext chat needs the package {package}, which is not installed: pip install "
            '"ggext[run]"\n'
        )


def test_an_error_of_ggext_itself_is_one_line_and_a_report() -> None:
    code = (
        "import sys, ggext.cli.inspect as inspect; from ggext.cli import main; "
        "inspect.inspect.callback = lambda **_: [][1]; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        [*command, "inspect", __file__], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "ggext: this is a fault of ggext: IndexError: list index out of range"
    )
    report = Path(line.rsplit(" in ", 1)[1])
    assert "Traceback" in report.read_text()
    done = subprocess.run(
        [*command, "--debug", "inspect", __file__],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.startswith("Traceback")


def test_an_empty_document_is_told(question: list[str], tmp_path: Path) -> None:
    """Its question was answered without a word."""
    empty = tmp_path / "empty.txt"
    empty.touch()
    done = subprocess.run(
        [*GGEXT, *question, "-f", str(empty)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert f"{empty.name} is empty: there is nothing to read" in done.stderr


def test_an_interrupt_ends_verify_and_is_never_a_verdict(demo_gguf: Path) -> None:
    """On the edge of a callback it was dropped: exit code 0 or 1, and a wrong verdict.

    What has been said is whole: an interrupt that comes after it takes nothing back."""
    command = [sys.executable, "-m", "ggext", "verify", str(demo_gguf)]
    start = time.monotonic()
    whole = subprocess.run(command, capture_output=True, check=False, timeout=60)
    seconds = time.monotonic() - start
    assert whole.returncode == 0
    for part in (0.4, 0.6, 0.7, 0.8, 0.9, 0.95):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(part * seconds)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
            assert whole.stdout.startswith(output)
            if output != whole.stdout or process.returncode:
                # -SIGINT: Python had not yet come to our first line; a shell says 130 to both
                assert process.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize(
    "command", ["show", "inspect", "plan", "verify", "chat", "eval", "undo"]
)
def test_a_checkpoints_name_is_no_file(command: str) -> None:
    done = CliRunner().invoke(main, [command, "demo"])
    assert done.exit_code == 2
    assert (
        "demo is a checkpoint; ggext convert demo makes a .gguf file of it"
        in done.stderr
    )


@needs_full
@pytest.mark.parametrize("command", ["verify", "inspect", "plan"])
def test_who_cannot_be_told_of_progress_still_gets_the_answer(
    demo_gguf: Path, command: str
) -> None:
    assert sh([command, str(demo_gguf)], "2>/dev/full").returncode == 0
