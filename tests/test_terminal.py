"""What the terminal shows, what Ctrl-C reaches, and one question from the command line."""

from __future__ import annotations

import io
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import SHARED

from ggext import terminal
from ggext.terminal import PlainScreen, on_interrupt, shown

if TYPE_CHECKING:
    from ggext.gguf.writer import TensorToWrite

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
STORIES = SHARED / "models/stories260K"


@pytest.fixture(scope="session")
def slow_gguf(stories_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 25 million numbers, slow enough to be caught computing, that always says x."""
    from ggext.gguf.reader import read_gguf
    from ggext.gguf.types import Field
    from ggext.gguf.writer import write_gguf

    width, inner, layers = 512, 1376, 8
    header = read_gguf(stories_gguf)
    numbers = {
        "block_count": layers,
        "context_length": 8192,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.head_count_kv": 8,
        "rope.dimension_count": 64,
    }
    fields = header.fields | {f"llama.{key}": Field.of(value) for key, value in numbers.items()}
    shapes = {"token_embd.weight": (width, 512), "output_norm.weight": (width,)}
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}.weight"] = (width, width)
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{name}.weight"] = (width,)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"blk.{layer}.{name}.weight"] = (width, inner)
        shapes[f"blk.{layer}.ffn_down.weight"] = (inner, width)
    out = tmp_path_factory.mktemp("slow") / "slow.gguf"
    # Every token is the first unit vector, x twice that; the layers, all zero, add nothing.
    rows = np.zeros((512, width), np.float32)
    rows[:, 0] = 1
    rows[header.get("tokenizer.ggml.tokens").index("x"), 0] = 2
    values = {"token_embd.weight": rows, "output_norm.weight": np.ones(width, np.float32)}
    write_gguf(out, fields, [_tensor(name, shape, values) for name, shape in shapes.items()])
    return out


def _tensor(name: str, shape: tuple[int, ...], values: dict[str, Any]) -> TensorToWrite:
    from ggext.gguf.writer import TensorToWrite

    size = 4 * math.prod(shape)
    data = values[name].tobytes() if name in values else bytes(size)
    return TensorToWrite(name, shape, 0, size, lambda: [data])


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_reaches_a_prefill_inside_llama_cpp(slow_gguf: Path) -> None:
    from ggext.runtime.engine import Model, Session, SessionOptions

    with Model.open(slow_gguf) as model, Session(model, SessionOptions(n_batch=4096)) as session:
        session.evaluate([1])
        sent: list[float] = []

        def interrupt() -> None:
            sent.append(time.monotonic())
            _interrupt()

        timer = threading.Timer(0.1, interrupt)
        timer.start()
        with on_interrupt(session.cancel):
            prefill = session.evaluate([1] * 4096)
        late = time.monotonic() - sent[0]
        timer.join()
    assert prefill.cancelled
    assert prefill.evaluated == 0  # all were in one call of llama_decode
    assert late < 1  # tenths of a second, on a machine that others use


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background and inherited an ignored SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_on_interrupt_raises_nothing_and_restores_the_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    called = threading.Event()
    with on_interrupt(called.set):
        interrupt_after(0).join()
        assert called.wait(2)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the signal comes in the sleep
        interrupt_after(0.05)
        time.sleep(2)


def test_on_interrupt_cancels_what_starts_a_moment_later() -> None:
    calls: list[float] = []
    with on_interrupt(lambda: calls.append(time.monotonic())):
        _interrupt()
        time.sleep(0.3)
    assert len(calls) > 3


def test_on_interrupt_leaves_other_threads_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        with on_interrupt(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_control_characters_never_reach_the_terminal() -> None:
    assert shown("a\x1b[2Jb\r\x9b\x07\n\tcé☃") == "a�[2Jb���\n\tcé☃"


def test_a_plain_screen_keeps_the_answer_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo"))
    screen = PlainScreen()
    lines = [screen.read(), screen.read(), screen.read()]
    screen.notice("N")
    screen.progress(0, 10_000)
    screen.progress(5000, 10_000)
    for piece in ("an", "swer\x1b"):
        screen.answer(piece)
    screen.end_answer()
    screen.error("E")
    screen.status("S")
    assert lines == ["one", "two", None]
    assert capsys.readouterr() == ("answer\x1b\n", "> > > N\nE\nS\n")


def test_an_encoding_that_lacks_a_character_gets_a_question_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        terminal.write("Zoë ☃")
    assert raw.getvalue() == b"Zo? ?"


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("total", "seconds", "bar_at"),
    [
        pytest.param(1024, 0.01, None, id="fast: none"),
        pytest.param(1024, 30.0, 256, id="slow: once that is known"),
        pytest.param(4096, 30.0, 0, id="long: at once"),
    ],
)
def test_a_bar_is_drawn_for_a_prompt_that_takes_long(
    total: int, seconds: float, bar_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    bar = terminal.PrefillBar(terminal._console(file))
    for done in (0, 256, 512):
        clock = SimpleNamespace(perf_counter=lambda now=done / 256 * seconds: now)
        monkeypatch.setattr(terminal, "time", clock)
        bar.update(done, total)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert bar.stop() is (bar_at is not None)
    if bar_at is not None:
        assert text.index(f"{bar_at}/{total} tokens") < text.index(f"512/{total} tokens")
        minutes = (total - 512) * 30 // 256 // 60
        assert f"512/{total} tokens {minutes}:00 left" in text


GGEXT = (sys.executable, "-c", "from ggext.cli import main; main()", "chat")


def ggext(*arguments: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [*GGEXT, *map(str, arguments)]
    return subprocess.run(command, input=stdin or b"", capture_output=True, check=False, timeout=60)


GREEDY = ("--temperature", "0", "--max-tokens", "12")
LILY = b" there was a little girl named Lily. She lo"


def test_a_question_on_the_command_line(stories_gguf: Path) -> None:
    done = ggext(stories_gguf, "-p", "Once upon a time,", *GREEDY)
    assert (done.returncode, done.stdout) == (0, LILY + b"\n")
    assert done.stderr.decode().splitlines() == [
        "the file has no chat template: the model continues the text as it is",
        "the answer was stopped at its longest length (--max-tokens)",
    ]


def test_a_question_on_the_standard_input(stories_gguf: Path) -> None:
    done = ggext(stories_gguf, *GREEDY, stdin=b"Once upon a time,\n")
    assert (done.returncode, done.stdout) == (0, LILY + b"\n")


def test_a_document_stands_before_the_question(stories_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "doc.txt").write_text("Tim had a red ball.\n")
    question = ("-p", "Once upon a time,", *GREEDY)
    whole = ggext(stories_gguf, "-p", "Tim had a red ball.\nOnce upon a time,", *GREEDY)
    from_file = ggext(stories_gguf, "-f", tmp_path / "doc.txt", *question)
    from_pipe = ggext(stories_gguf, "-f", "-", *question, stdin=b"Tim had a red ball.\n")
    assert whole.stdout == from_file.stdout == from_pipe.stdout
    assert whole.returncode == from_file.returncode == from_pipe.returncode == 0


def test_a_document_that_does_not_fit_gives_the_counts(stories_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "doc.txt").write_text("Tim had a red ball.\n" * 500)
    done = ggext(stories_gguf, "-f", tmp_path / "doc.txt", "-p", "Why?")
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.search(rb"the context is full: \d+ more tokens requested, 0 used, 512 of 512 left", done.stderr)
    assert b"Traceback" not in done.stderr


def test_a_seed_repeats_the_answer(stories_gguf: Path) -> None:
    question = (stories_gguf, "-p", "Once", "--temperature", "1.5", "--max-tokens", "20")
    same = {ggext(*question, "--seed", "7").stdout for _ in range(2)}
    assert len(same) == 1
    assert ggext(*question, "--seed", "8").stdout not in same


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--top-p", "2"], 2, "top-p is 2.0, but must be from 0 to 1"),
        (["-f", "nothing.txt"], 2, "nothing.txt cannot be read: No such file or directory"),
        (["-f", "-", "-f", "-"], 2, "can be read once"),
        (["--load", "nothing.json"], 1, "nothing.json cannot be read"),
        (["--ctx", "0"], 2, "--ctx"),
    ],
)
def test_a_mistake_ends_in_one_line(stories_gguf: Path, arguments: list[str], code: int, message: str) -> None:
    done = ggext(stories_gguf, "-p", "Hi", *arguments)
    assert done.returncode == code
    assert done.stdout == b""
    assert message in done.stderr.decode().splitlines()[-1]


def test_no_question_at_all_is_said(stories_gguf: Path) -> None:
    done = ggext(stories_gguf)
    assert done.returncode == 2
    assert b"there is no question" in done.stderr


def test_a_reader_that_goes_away_gets_no_traceback(stories_gguf: Path) -> None:
    command = [*GGEXT, str(stories_gguf), "-p", "Once"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read()
        process.wait(60)
    assert b"Traceback" not in error
    assert b"Exception" not in error


def test_ctrl_c_ends_a_question_at_once(slow_gguf: Path) -> None:
    command = [*GGEXT, str(slow_gguf), "-p", "Once", "--temperature", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error.decode().splitlines()[-1] == "stopped"


# Makes the terminal on its standard input its controlling one, whose Ctrl-C is a signal to it.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
)
CTRL_C, CTRL_D = "\x03", "\x04"


class Keyboard:
    """ggext chat in a terminal of its own: keys in, the text on the screen out."""

    def __init__(self, *arguments: str | Path) -> None:
        import pty
        import termios

        self.side, far = pty.openpty()
        termios.tcsetwinsize(far, (40, 120))
        command = [sys.executable, "-c", TAKE_TERMINAL, *GGEXT, *map(str, arguments)]
        environment = os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            command, stdin=far, stdout=far, stderr=far, start_new_session=True, env=environment
        )
        os.close(far)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.side, text.encode())

    def say(self, line: str) -> None:
        """Types a line once the prompt is there."""
        self.wait_for(">")
        self.type(line + "\r")

    def wait_for(self, text: str, seconds: float = 15) -> str:
        """What came up to and with `text`, terminal control left out."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not come within {seconds} s after {self.seen!r}"
            if select.select([self.side], [], [], left)[0]:
                new = os.read(self.side, 4096).decode("utf-8", "replace")
                self.seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.seen + new)
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def leave(self) -> int:
        """Ctrl-D, and the exit code."""
        self.wait_for(">")
        self.type(CTRL_D)
        code = self.process.wait(30)
        os.close(self.side)
        return code


@pytest.fixture
def keyboard() -> Iterator[Callable[..., Keyboard]]:
    opened: list[Keyboard] = []

    def open_one(*arguments: str | Path) -> Keyboard:
        opened.append(Keyboard(*arguments))
        opened[0].wait_for("Ctrl-D leaves")
        return opened[0]

    yield open_one
    for one in opened:
        one.process.kill()
        one.process.wait()


needs_pty = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty module")


@needs_pty
def test_a_chat_in_a_terminal(keyboard: Callable[..., Keyboard], stories_gguf: Path, tmp_path: Path) -> None:
    chat = keyboard(stories_gguf, *GREEDY)
    chat.say("Once upon a time,")
    assert LILY.decode() in chat.wait_for("wrote 12")
    chat.say(f"/save {tmp_path}/chat.json")
    chat.wait_for("saved 2 turns")
    chat.wait_for(">")
    chat.type(CTRL_C)
    chat.wait_for("Ctrl-D or /exit leaves")
    chat.say("/clear")
    chat.wait_for("the chat starts over")
    chat.say(f"/load {tmp_path}/chat.json")
    chat.wait_for("loaded 2 turns")
    chat.say("Tim")
    chat.wait_for("wrote 12")
    assert chat.leave() == 0


@needs_pty
def test_ctrl_c_in_an_answer_keeps_the_chat(keyboard: Callable[..., Keyboard], slow_gguf: Path) -> None:
    chat = keyboard(slow_gguf, "--temperature", "0")
    chat.say("Once")
    chat.wait_for("xxx")
    chat.type(CTRL_C)
    chat.wait_for("stopped", seconds=2)
    chat.wait_for("context: ")
    chat.say("/help")
    chat.wait_for("/exit ")
    assert chat.leave() == 0


@needs_pty
def test_ctrl_c_in_a_prefill_keeps_the_chat(keyboard: Callable[..., Keyboard], slow_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("Tim had a red ball. " * 300)
    chat = keyboard(slow_gguf, "--temperature", "0", "--max-tokens", "5")
    chat.say(f"/file {tmp_path}/long.txt")
    chat.wait_for("go into the next turn")
    chat.say("Why?")
    chat.wait_for("reading")
    time.sleep(0.3)
    chat.type(CTRL_C)
    chat.wait_for("the turn was taken back", seconds=2)
    chat.say("/clear")
    chat.wait_for("the chat starts over")
    chat.say("Who?")
    chat.wait_for("wrote 5")
    assert chat.leave() == 0


@needs_pty
def test_a_pasted_block_is_one_turn(keyboard: Callable[..., Keyboard], stories_gguf: Path, tmp_path: Path) -> None:
    chat = keyboard(stories_gguf, *GREEDY)
    chat.say("\x1b[200~one\ntwo\x1b[201~")
    chat.wait_for("wrote 12")
    chat.say(f"/save {tmp_path}/chat.json")
    chat.wait_for("saved 2 turns")
    assert json.loads((tmp_path / "chat.json").read_text())["turns"][0]["content"] == "one\ntwo"
    assert chat.leave() == 0
