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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from paths import SHARED

from ggext.screen import painting
from ggext.screen.interrupt import on_interrupt
from ggext.screen.painting import shown
from ggext.screen.terminal import PlainScreen

if TYPE_CHECKING:
    from ggext.gguf.writer import TensorToWrite

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
STORIES = SHARED / "models/stories260K"


@pytest.fixture(scope="session")
def slow_gguf(stories_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 25 million numbers, slow enough to be caught computing, that always says x."""
    from ggext.gguf.open import read_gguf
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
        make_batch, timers = session.cache._batch, []

        def batch(tokens: Sequence[int], every_logit: bool) -> Any:
            timers.append(interrupt_after(0.1))
            return make_batch(tokens, every_logit)

        session.cache._batch = batch  # type: ignore[method-assign]
        with on_interrupt(session.cancel):
            prefill = session.evaluate([1] * 4096)
            timers[0].join()
    assert prefill.cancelled
    assert (
        prefill.evaluated == 0
    )  # all were in one call of llama_decode, which did not come to its end
    assert len(timers) == 1


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background and inherited an ignored
    SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_on_interrupt_raises_nothing_and_restores_the_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    called = threading.Event()
    with on_interrupt(called.set):
        interrupt_after(0).join()
        assert called.wait(30)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the signal comes in the sleep
        interrupt_after(0.05)
        time.sleep(30)


def test_on_interrupt_cancels_what_starts_a_moment_later() -> None:
    calls = threading.Semaphore(0)
    with on_interrupt(calls.release):
        _interrupt()
        assert all(calls.acquire(timeout=30) for _ in range(4))


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
    assert lines == ["one", "two", None]
    assert capsys.readouterr() == ("answer\x1b\n", "> > > N\nE\n")


def test_an_encoding_that_lacks_a_character_gets_a_question_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        painting.write("Zoë ☃")
    assert raw.getvalue() == b"Zo? ?"


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("after", "is_shown"), [(0.0, True), (60.0, False)])
def test_what_takes_long_is_said_and_taken_off(
    monkeypatch: pytest.MonkeyPatch, after: float, is_shown: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(painting, "_LONG_WAIT", after)
    file = Terminal()
    with painting.waiting(painting.new_console(file), "loading \x1b[31mx.gguf"):
        deadline = time.monotonic() + 10
        while is_shown and "loading" not in file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ("loading \ufffd[31mx.gguf" in file.getvalue()) is is_shown
    assert file.getvalue().endswith("\x1b[?25h" if is_shown else "")


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
    bar = painting.PrefillBar(painting.new_console(file))
    for done in (0, 256, 512):
        clock = SimpleNamespace(perf_counter=lambda now=done / 256 * seconds: now)
        monkeypatch.setattr(painting, "time", clock)
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
    assert (done.returncode, done.stdout) == (3, b"")
    assert re.search(
        rb"--target-context \d+ .* it takes .* beside the weights, .* of memory are free",
        done.stderr,
    )
    assert re.search(
        rb"the text has [\d,]+ tokens and the context holds 512; shorten it", done.stderr
    )
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
        (["--ctx", "0"], 2, "0 is 0 tokens; from 1 to"),
        (
            ["--context", "many"],
            2,
            "'many' is not a number of tokens such as 16384, 16,384, 16k or 1M, or auto",
        ),
    ],
)
def test_a_mistake_ends_in_one_line(
    stories_gguf: Path, arguments: list[str], code: int, message: str
) -> None:
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
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, sys.argv[1:])"
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
        self.marks_pastes = False

    def paste(self, text: str) -> None:
        """What a terminal does: a block has marks around it where the program asked for them."""
        block = text.replace("\n", "\r")
        self.type(f"\x1b[200~{block}\x1b[201~" if self.marks_pastes else block)

    def type(self, text: str) -> None:
        os.write(self.side, text.encode())

    def say(self, line: str) -> None:
        """Types a line once the prompt is there."""
        self.wait_for(">")
        self.type(line + "\r")

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What came up to and with `text`, terminal control left out."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not come within {seconds} s after {self.seen!r}"
            if select.select([self.side], [], [], left)[0]:
                new = os.read(self.side, 4096).decode("utf-8", "replace")
                for mode in re.findall(r"\x1b\[\?2004([hl])", new):
                    self.marks_pastes = mode == "h"
                self.seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.seen + new)
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def raw_until_prompt(self, seconds: float = 20) -> str:
        """Everything up to the next prompt, terminal control included."""
        end, raw = time.monotonic() + seconds, ""
        # Ready for a paste, with the prompt drawn after that and the cursor on.
        ready = r"\x1b\[\?2004h((?!\x1b\[\?2004).)*>((?!\x1b\[\?2004).)*\x1b\[\?25h$"
        while not re.search(ready, raw, re.DOTALL):
            left = end - time.monotonic()
            assert left > 0, f"no prompt within {seconds} s after {raw!r}"
            if select.select([self.side], [], [], left)[0]:
                raw += os.read(self.side, 4096).decode("utf-8", "replace")
        return raw

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
def test_a_chat_in_a_terminal(
    keyboard: Callable[..., Keyboard], stories_gguf: Path, tmp_path: Path
) -> None:
    chat = keyboard(stories_gguf, *GREEDY)
    chat.say("Once upon a time,")
    assert LILY.decode() in chat.wait_for("wrote 12")
    chat.say(f"/save {tmp_path}/chat.json")
    chat.wait_for("saved 1 question")
    chat.wait_for(">")
    chat.type(CTRL_C)
    chat.wait_for("Ctrl-C again or Ctrl-D leaves")
    chat.say("/clear")
    chat.wait_for("the chat starts over")
    chat.say(f"/load {tmp_path}/chat.json")
    chat.wait_for("loaded 1 question")
    chat.say("Tim")
    chat.wait_for("wrote 12")
    assert chat.leave() == 0


@needs_pty
def test_ctrl_c_in_an_answer_keeps_the_chat(
    keyboard: Callable[..., Keyboard], slow_gguf: Path
) -> None:
    chat = keyboard(slow_gguf, "--temperature", "0")
    chat.say("Once")
    chat.wait_for("xxx")
    chat.type(CTRL_C)
    chat.wait_for("stopped", seconds=2)
    chat.wait_for("context: ")
    chat.say("/help")
    chat.wait_for("/quit ")
    assert chat.leave() == 0


@needs_pty
def test_ctrl_c_in_a_prefill_keeps_the_chat(
    keyboard: Callable[..., Keyboard], slow_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("Tim had a red ball. " * 300)
    chat = keyboard(slow_gguf, "--temperature", "0", "--max-tokens", "5")
    chat.say(f"/file {tmp_path}/long.txt")
    chat.wait_for("go into the next turn")
    chat.say("Why?")
    chat.wait_for("reading")
    time.sleep(0.3)
    chat.type(CTRL_C)
    chat.wait_for("the turn was taken back")
    chat.say("/clear")
    chat.wait_for("the chat starts over")
    chat.say("Who?")
    chat.wait_for("wrote 5")
    assert chat.leave() == 0


@needs_pty
def test_keys_that_come_during_an_answer_wait_for_the_prompt(
    keyboard: Callable[..., Keyboard], slow_gguf: Path
) -> None:
    chat = keyboard(slow_gguf, "--temperature", "0", "--max-tokens", "40")
    chat.say("Once")
    chat.wait_for("xxx")
    chat.type(f"/clearly\x7f\x7f\r{CTRL_D}")
    chat.wait_for("the chat starts over")
    assert chat.process.wait(30) == 0
    os.close(chat.side)


@needs_pty
def test_a_pasted_block_is_one_turn(
    keyboard: Callable[..., Keyboard], stories_gguf: Path, tmp_path: Path
) -> None:
    chat = keyboard(stories_gguf, *GREEDY)
    chat.say("\x1b[200~one\ntwo\x1b[201~")
    chat.wait_for("wrote 12")
    chat.say(f"/save {tmp_path}/chat.json")
    chat.wait_for("saved 1 question")
    assert json.loads((tmp_path / "chat.json").read_text())["turns"][0]["content"] == "one\ntwo"
    assert chat.leave() == 0


@needs_pty
def test_a_block_that_is_pasted_during_an_answer_is_one_turn(
    keyboard: Callable[..., Keyboard], slow_gguf: Path, tmp_path: Path
) -> None:
    """Each of its lines was a turn of its own."""
    chat = keyboard(slow_gguf, "--temperature", "0", "--max-tokens", "40")
    chat.say("Once")
    chat.wait_for("xxx")
    chat.paste("one\ntwo\n/clear")
    chat.type("\r")
    chat.wait_for("wrote 40")
    chat.wait_for("wrote 40")
    chat.say(f"/save {tmp_path}/chat.json")
    chat.wait_for("saved 2 questions")
    turns = json.loads((tmp_path / "chat.json").read_text())["turns"]
    assert turns[2]["content"] == "one\ntwo\n/clear"
    assert chat.leave() == 0


@needs_pty
def test_a_document_without_a_question_waits_for_one(
    keyboard: Callable[..., Keyboard], demo_gguf: Path, story: Path
) -> None:
    chat = keyboard(demo_gguf, "-f", story, "--temperature", "0")
    chat.wait_for(f"{story}: 301 tokens go into the next turn")
    chat.wait_for("which the question decides")
    chat.type("Where is the crown?\r")
    chat.wait_for("Look for the crown ")
    chat.wait_for("read 54 at ")
    chat.wait_for(" and 256 while you typed, reused 0; wrote 6")
    assert chat.leave() == 0


@needs_pty
def test_what_was_read_ahead_is_kept_with_the_session(
    keyboard: Callable[..., Keyboard], demo_gguf: Path, story: Path
) -> None:
    chat = keyboard(demo_gguf, "-f", story, "--session", "crown")
    chat.wait_for("which the question decides")
    chat.type(CTRL_D)
    assert chat.process.wait(30) == 0
    os.close(chat.side)
    notices = typed([demo_gguf, "--session", "crown"])
    assert notices[0] == "session crown: 0 questions; 256 tokens of KV cache restored in N s"


def test_ctrl_c_while_the_cache_is_written_keeps_the_turns(
    stories_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ggext.chat.session import Keeper, named
    from ggext.cli import main

    def interrupted(_: Keeper) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "save_state", interrupted)
    arguments = ["chat", str(stories_gguf), "-p", "Once upon a time,", "--session", "lily", *GREEDY]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code in (0, None)
    assert "the KV cache is not kept: Ctrl-C stopped its writing" in capsys.readouterr().err
    with Keeper(named("lily"), "stories.gguf", None) as kept:
        assert [turn.role for turn in kept.turns] == ["user", "assistant"]


@needs_pty
def test_ctrl_c_while_a_document_is_read_ahead_keeps_what_was_read(
    keyboard: Callable[..., Keyboard], slow_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("Tim had a red ball. " * 300)
    chat = keyboard(
        slow_gguf, "-f", tmp_path / "long.txt", "--temperature", "0", "--max-tokens", "5"
    )
    chat.wait_for("reading the document meanwhile: ")
    chat.wait_for(" left")  # after the first batch
    chat.type(CTRL_C)
    chat.wait_for("the reading stops, what was read is kept; Ctrl-C again or Ctrl-D leaves")
    chat.say("Why?")
    seen = chat.wait_for("wrote 5")
    assert "meanwhile" not in seen
    assert re.search(r"read [\d,]+ at [\d,]+/s and [\d,]+ while you typed, reused 0;", seen)
    assert chat.leave() == 0


def test_events_are_one_json_object_a_line(demo_gguf: Path, story: Path) -> None:
    done = ggext(
        demo_gguf, "-f", story, "-p", "Where is the crown?", "--temperature", "0", "--json"
    )
    assert done.returncode == 0
    assert done.stderr == b""
    events = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
    kinds = [event["event"] for event in events]
    assert set(kinds) == {"prefill", "text", "end"}
    prefill = [event for event in events if event["event"] == "prefill"]
    assert (prefill[0]["done"], prefill[0]["seconds_left"]) == (0, None)
    assert prefill[-1]["done"] == prefill[-1]["total"] == 310
    end = events[-1]
    assert end["text"] == "".join(event["text"] for event in events if event["event"] == "text")
    assert re.fullmatch(r"Look for the crown \w+\.", end["text"])
    assert end["finish"] == "eog"
    assert end["context"] == {"used": 316, "allocated": 1024, "trained": 256}
    assert end["prefill"]["evaluated"] == 310
    assert end["generated"]["tokens"] == 6


def test_an_error_is_an_event_too(demo_gguf: Path, story: Path) -> None:
    done = ggext(demo_gguf, *["-f", story] * 4, "-p", "Why?", "--json")
    events = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
    assert done.returncode == 3
    assert [event["event"] for event in events][-1] == "error"
    assert "the context holds 1,024" in events[-1]["text"]
    assert any("--target-context" in event["text"] for event in events[:-1])


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, for 1,024 tokens."""
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling

    out = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(ConvertOptions(DEMO_MODEL, out, RopeScaling("yarn", factor=4)))
    return out


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 tokens that say where a crown is."""
    from click.testing import CliRunner

    from ggext.cli import main

    out = tmp_path_factory.mktemp("story") / "story.txt"
    text = CliRunner().invoke(main, ["demo", "--text", "300"]).output
    assert "crown" in text
    out.write_text(text)
    return out


def test_a_book_is_piped_and_asked(demo_gguf: Path, story: Path) -> None:
    """cat book.txt | ggext chat model.gguf -p ..."""
    question = ("-p", "Where is the crown?", "--temperature", "0")
    piped = ggext(demo_gguf, *question, stdin=story.read_bytes())
    named = ggext(demo_gguf, "-f", story, *question)
    assert piped.stdout == named.stdout
    assert re.fullmatch(rb"Look for the crown \w+\.\n", piped.stdout)
    assert (piped.returncode, piped.stderr) == (0, b"")


def test_a_stop_string_and_a_grammar_from_the_command_line(
    demo_gguf: Path, story: Path, tmp_path: Path
) -> None:
    question = ("-f", story, "-p", "Where is the crown?", "--temperature", "0")
    assert ggext(demo_gguf, *question, "--stop", "the crown").stdout == b"Look for \n"
    schema = (
        '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, '
        '"required": ["n"]}'
    )
    assert isinstance(
        json.loads(ggext(demo_gguf, *question, "--json-schema", schema).stdout)["n"], int
    )
    (tmp_path / "g.gbnf").write_text('root ::= "Look " [a-c]+ "."')
    cut = ggext(demo_gguf, *question, "--grammar", tmp_path / "g.gbnf", "--max-tokens", "30")
    assert re.match(rb"Look [abc]", cut.stdout)


def test_another_template_and_its_options(demo_gguf: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% if effort != 'high' or n != 3 %}{{ raise_exception('effort ' ~ effort) }}{% endif %}"
        "{{ messages[-1].content }}"
    )
    question = (demo_gguf, "-p", "Where?", *GREEDY, "--template", template)
    options = ("--template-option", "effort=high", "--template-option", "n=3")
    assert ggext(*question, *options).returncode == 0
    refused = ggext(*question, *options, "--template-option", "effort=low")
    assert refused.returncode == 1
    assert b"refuses this conversation: effort low" in refused.stderr
    unknown = ggext(*question, "--template-option", "depth=1")
    assert b"ggext: the chat template has no option depth" in unknown.stderr
    assert b"is not NAME=VALUE" in ggext(*question, "--template-option", "depth").stderr


def test_an_answer_that_is_cut_before_its_grammar_ends_is_an_error(demo_gguf: Path) -> None:
    question = (demo_gguf, "-p", "Where?", "--temperature", "0", "--json-schema")
    word = '{"enum": ["a word that takes more than one token"]}'
    cut = ggext(*question, word, "--max-tokens", "2")
    assert cut.returncode == 1
    assert b"ggext: the answer is not whole: --max-tokens cut it before its grammar ended" in (
        cut.stderr
    )
    whole = ggext(*question, word, "--max-tokens", "99")
    assert whole.returncode == 0
    # Cut behind its last token it is whole.
    assert ggext(*question, '{"const": 1}', "--max-tokens", "1").returncode == 0


@pytest.mark.parametrize(("given", "allocated"), [("auto", 512), ("256", 256)])
def test_the_context_is_a_number_or_auto(stories_gguf: Path, given: str, allocated: int) -> None:
    done = ggext(stories_gguf, "-p", "Once", "--context", given, "--max-tokens", "1", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["context"]["allocated"] == allocated


def test_an_answer_that_fills_the_context_exits_with_3(stories_gguf: Path) -> None:
    done = ggext(stories_gguf, "-p", "Once", "--ctx", "32", "--temperature", "0")
    assert done.returncode == 3
    assert b"the context is full: the answer stops here, nothing was dropped" in done.stderr


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One.\n\nTwo", ["One.\n\n", "Two"]),
        ("One.\n\n", ["One.\n\n"]),
        ("One.\nTwo.", ["One.\nTwo."]),
        ("One.\n\n\nTwo.\n\nThree", ["One.\n\n\n", "Two.\n\n", "Three"]),
        ("- a\n\n- b\n\nEnd", ["- a\n\n- b\n\n", "End"]),
        ("1. a\n\n2", ["1. a\n\n2"]),
        ("Text:\n\n- a", ["Text:\n\n", "- a"]),
        ("> a\n\n> b", ["> a\n\n", "> b"]),
        ("1. a\n\n1986 was", ["1. a\n\n", "1986 was"]),
        ("Text\n\n**bold", ["Text\n\n", "**bold"]),
        ("```\na\n\nb\n```\n\nEnd", ["```\na\n\nb\n```\n\n", "End"]),
        ("```\na\n\nb", ["```\na\n\nb"]),
        ("````\n```\n\nb\n````\n\nEnd", ["````\n```\n\nb\n````\n\n", "End"]),
        ("- a\n\n  more\n\nEnd", ["- a\n\n  more\n\n", "End"]),
    ],
)
def test_blocks_of_markdown_are_whole_when_nothing_can_join_them(
    text: str, parts: list[str]
) -> None:
    assert painting.whole_blocks(text) == (parts[:-1], parts[-1])


MARKDOWN = (
    "# Plan\n\nFirst *line*\nsecond **line**.\n\n- one\n- "
    "two\n\n```python\nprint('x')\n\nprint('y')\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\nMuch of vector<int>.\n\nThe end.\x1b[2J"
)


def lines_on_screen(raw: str, columns: int = 120) -> list[str]:
    """What a terminal shows after it got this."""
    import pyte

    screen = pyte.Screen(columns, 200)
    pyte.Stream(screen).feed(raw.replace("\r\n", "\n").replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display]


def paint(monkeypatch: pytest.MonkeyPatch, text: str, step: int) -> list[str]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(painting, "_BETWEEN_PAINTS", 0.0)
    monkeypatch.setattr(painting, "time", SimpleNamespace(monotonic=lambda: 0.0))
    file = Terminal()
    console = painting.new_console(file)
    console.size = (60, 12)
    answer = painting.GrowingMarkdown(console)
    for at in range(0, len(text), step):
        answer.add(text[at : at + step])
    answer.end()
    return lines_on_screen(file.getvalue(), 60)


def test_markdown_grows_into_what_it_is_when_printed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.console import Console

    at_once = Console(width=60, file=io.StringIO(), color_system=None)
    at_once.print(painting._markdown(MARKDOWN))
    assert isinstance(at_once.file, io.StringIO)
    wanted = [line.rstrip() for line in at_once.file.getvalue().splitlines()]
    wanted = [
        line for line, before in zip(wanted, ["", *wanted], strict=False) if line or before
    ]  # no two blank lines
    for step in (1, 7, 1000):
        assert paint(monkeypatch, MARKDOWN, step)[: len(wanted)] == wanted
    assert any("of vector<int>" in line for line in wanted)  # no HTML is taken out
    assert "First line" in wanted  # a line that a model ended stays a line
    assert "The end.�[2J" in wanted


def test_a_block_taller_than_the_screen_is_whole_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "\n".join(f"- item {i}" for i in range(40))
    painted = paint(monkeypatch, text, 5)
    assert [line.strip() for line in painted if line] == [f"• item {i}" for i in range(40)]


def test_reasoning_is_folded_into_one_line_or_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from ggext.screen.terminal import AnswerScreen

    for show, wanted in (
        (False, ["thought for 0 s, 3 words", "", "Yes."]),
        (True, ["Hm, well, so, what?", "", "Yes."]),
    ):
        file = Terminal()
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setenv("TERM", "xterm")
        screen = AnswerScreen()
        screen.show_thoughts = show
        for piece in ("Hm, ", "well, ", "so, ", "what?"):
            screen.thought(piece)
        screen.answer("Yes.")
        screen.end_answer()
        assert lines_on_screen(file.getvalue())[:3] == wanted


def test_completion_offers_commands_settings_and_paths(tmp_path: Path) -> None:
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from ggext.screen.keyboard import new_completer

    (tmp_path / "book.txt").touch()

    def offered(text: str) -> list[str]:
        return [c.text for c in new_completer().get_completions(Document(text), CompleteEvent())]

    assert offered("/re") == ["/regen"]
    assert "/quit" in offered("/")
    assert offered("/set te") == ["temperature"]
    assert offered("/when-full la") == ["landmark"]
    assert offered(f"/file {tmp_path}/bo") == ["ok.txt"]
    assert offered("what is /re") == []
    assert offered("/system be") == []


@needs_pty
def test_a_whole_chat_by_its_transcript(demo_gguf: Path, story: Path, tmp_path: Path) -> None:
    """A session is begun, left, gone on with and exported; the screen is compared line by line."""
    first = typed(
        [demo_gguf, "--temperature", "0", "--session", "crown"],
        f"/file {story}",
        "Where is the crown?",
        "/context",
    )
    assert first == [
        "session crown: 0 questions; a new chat",
        (
            "demo.gguf: 1,024 tokens of context, trained on 256; /help lists the commands, Ctrl-D "
            "leaves"
        ),
        "",
        f"> /file {story}",
        f"{story}: 301 tokens go into the next turn; 1,024 are available",
        "",
        "> Where is the crown?",
        "Look for the crown PLACE.",
        (
            "context: 316 of 1,024 tokens, trained on 256; read N at N/s and N while you typed, reused "
            "0; wrote 6 at N/s"
        ),
        "",
        "> /context",
        (
            "316 of 1,024 tokens are used, 708 are free; the file is made for 1,024, the model was "
            "trained on 256"
        ),
        "used: questions 306, answers 6, template 4",
        "KV cache: 0.2 of 0.8 MiB, 768 bytes a token",
        "",
        ">",
    ]
    second = typed(
        [demo_gguf, "--temperature", "0", "--session", "crown"],
        "Where is the crown?",
        "/regen",
        "/undo",
        f"/export {tmp_path}/chat.md",
    )
    assert second == [
        "session crown: 1 question; 316 tokens of KV cache restored in N s",
        (
            "demo.gguf: 1,024 tokens of context, trained on 256; /help lists the commands, Ctrl-D "
            "leaves"
        ),
        "",
        "> Where is the crown?",
        "Look for the crown PLACE.",
        "context: 331 of 1,024 tokens, trained on 256; read 9 at N/s, reused 316; wrote 6 at N/s",
        "",
        "> /regen",
        (
            "at temperature 0 the answer will most likely be the same; /set temperature 0.8 varies "
            "it"
        ),
        "Look for the crown PLACE.",
        "context: 331 of 1,024 tokens, trained on 256; read 1 at N/s, reused 324; wrote 6 at N/s",
        "",
        "> /undo",
        "taken back: Where is the crown?",
        "",
        f"> /export {tmp_path}/chat.md",
        f"wrote 1 question to {tmp_path}/chat.md as Markdown",
        "",
        ">",
    ]
    assert (tmp_path / "chat.md").read_text().startswith("**User**\n\n")


@needs_pty
def test_kill_9_in_an_answer_costs_its_last_second(slow_gguf: Path) -> None:
    chat = Keyboard(slow_gguf, "--temperature", "0", "--session", "book")
    chat.say("Once")
    for _ in range(2):
        chat.wait_for("x" * 10)
        time.sleep(1.1)
    chat.wait_for("xxx")
    chat.process.kill()
    chat.process.wait()
    os.close(chat.side)
    notices = typed([slow_gguf, "--session", "book"])
    assert (
        notices[1]
        == "session book: 1 question; no KV state was saved: the next question reads the chat again"
    )


def typed(arguments: list[Any], *lines: str) -> list[str]:
    """Types the lines into a chat, each when the prompt is there, then Ctrl-D; the screen, numbers
    of speed as N."""
    chat = Keyboard(*arguments)
    raw = ""
    try:
        for line in (*lines, CTRL_D):
            raw += chat.raw_until_prompt()
            chat.type(line + ("" if line == CTRL_D else "\r"))
        assert chat.process.wait(30) == 0
    finally:
        chat.process.kill()
        chat.process.wait()
        os.close(chat.side)
    text = re.sub(r"at [\d,]+/s", "at N/s", "\n".join(lines_on_screen(raw)))
    # How far a document was read before the question came depends on how fast that was typed.
    text = re.sub(
        r"read 310 at N/s|read [\d,]+ at N/s and [\d,]+ while you typed",
        "read N at N/s and N while you typed",
        text,
    )
    text = re.sub(r"in \d+\.\d\d s", "in N s", text)
    return (
        re.sub(r"Look for the crown \w+\.", "Look for the crown PLACE.", text)
        .rstrip("\n")
        .split("\n")
    )
