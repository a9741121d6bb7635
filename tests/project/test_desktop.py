"""The example window, driven on Qt's offscreen platform: it streams, stops, and never stands
still."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from paths import ROOT

pytest.importorskip("PySide6", reason='the extra "examples" is not installed')
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from PySide6.QtCore import QEvent, Qt, QTimer
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from ggext import Sampling

EXAMPLE = ROOT / "examples" / "desktop_chat.py"
GREEDY = Sampling(temperature=0)
SPEAKS = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def application() -> Iterator[QApplication]:
    patch = pytest.MonkeyPatch()
    patch.setenv("QT_QPA_PLATFORM", "offscreen")
    yield QApplication.instance() or QApplication([])  # type: ignore[misc]
    patch.undo()


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("desktop_chat", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["desktop_chat"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def endless_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose end token is never the likeliest."""
    keys = {"llama.context_length": 60000, "tokenizer.chat_template": SPEAKS}
    rows = (
        np.random.default_rng(1)
        .normal(0, 0.2, (tiny_gguf.N_VOCAB, tiny_gguf.N_EMBD))
        .astype("<f4")
    )
    rows[2] = 0
    path = tmp_path_factory.mktemp("models") / "endless.gguf"
    return tiny_gguf.write_random(
        path, "llama", extra_keys=keys, extra_tensors={"output.weight": rows}
    )


@pytest.fixture
def show(
    application: QApplication, example: ModuleType
) -> Iterator[Callable[[Path], Any]]:
    windows = []

    def make(path: Path) -> Any:
        window = example.ChatWindow(path, GREEDY)
        windows.append(window)
        window.show()
        wait_for(lambda: window.status.text() != "loading …")
        return window

    yield make
    for window in windows:
        window.close()
        # Now and here: what is only marked to be deleted may be collected by the next window's
        # thread, and Qt ends the process when a widget goes in a thread that is not its own.
        window.deleteLater()
        application.sendPostedEvents(window, QEvent.Type.DeferredDelete)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the window did not get there"
        QTest.qWait(5)


def ask(window: Any, text: str) -> None:
    QTest.keyClicks(window.input, text)
    QTest.keyClick(window.input, Qt.Key.Key_Return)


class Pulse:
    """How often the event loop came round, asked every 5 ms."""

    def __init__(self) -> None:
        self.beats = 0
        self._timer = QTimer(interval=5)
        self._timer.timeout.connect(self._beat)
        self._timer.start()

    def _beat(self) -> None:
        self.beats += 1


def test_it_answers_and_remembers(show: Callable[[Path], Any], demo_gguf: Path) -> None:
    window = show(demo_gguf)
    assert window.status.text() == "2,048 tokens of context"
    ask(window, "Tom hides the map below. Where is the map?")
    wait_for(lambda: not window.busy)
    text = window.transcript.toPlainText()
    assert (
        text
        == "You: Tom hides the map below. Where is the map?\nModel: Look for the map below."
    )
    assert window.status.text() == "6 tokens"
    ask(window, "Where is the map?")
    wait_for(lambda: not window.busy)
    assert [message["role"] for message in window.messages] == ["user", "assistant"] * 2
    assert window.messages[-1]["content"] == "Look for the map below."


def test_while_it_answers_the_window_reacts(
    show: Callable[[Path], Any], endless_gguf: Path
) -> None:
    """Within one answer, which grows meanwhile, the event loop comes round a hundred times."""
    window = show(endless_gguf)
    ask(window, "tell")
    wait_for(lambda: len(window.transcript.toPlainText()) > 100)
    pulse, before = Pulse(), len(window.transcript.toPlainText())
    wait_for(lambda: pulse.beats > 100)
    assert window.busy
    assert len(window.transcript.toPlainText()) > before
    assert not window.send_button.isEnabled()
    window.stop()


@pytest.mark.parametrize("how", ["button", "escape"])
def test_an_answer_stops_at_once_and_stays(
    how: str, show: Callable[[Path], Any], endless_gguf: Path
) -> None:
    window = show(endless_gguf)
    ask(window, "tell")
    wait_for(lambda: len(window.transcript.toPlainText()) > 100)
    if how == "button":
        QTest.mouseClick(window.stop_button, Qt.MouseButton.LeftButton)
    else:
        QTest.keyClick(window, Qt.Key.Key_Escape)
    wait_for(lambda: not window.busy)
    assert window.status.text().endswith(" tokens, stopped")
    said = window.messages[-1]
    assert said["role"] == "assistant"
    assert window.transcript.toPlainText().endswith(said["content"][-20:])
    ask(window, "more")
    wait_for(lambda: window.busy)


def test_who_reads_further_up_is_left_there(
    show: Callable[[Path], Any], endless_gguf: Path
) -> None:
    window = show(endless_gguf)
    bar = window.transcript.verticalScrollBar()
    ask(window, "tell")
    wait_for(lambda: bar.maximum() > 50)
    assert bar.value() == bar.maximum()
    bar.setValue(10)
    before = bar.maximum()
    wait_for(lambda: bar.maximum() > before)
    assert bar.value() == 10


def test_markup_in_a_question_is_text(
    show: Callable[[Path], Any], demo_gguf: Path
) -> None:
    window = show(demo_gguf)
    ask(window, "<b>map</b> & <img src='x'>")
    assert window.transcript.toPlainText().startswith("You: <b>map</b> & <img src='x'>")
    wait_for(lambda: not window.busy)


def test_a_file_that_is_no_model_is_told(
    show: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    window = show(path)
    assert str(path) in window.status.text()
    assert not window.input.isEnabled()
