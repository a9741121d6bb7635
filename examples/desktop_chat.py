"""A chat window: ``pip install "ggext[run,examples]"``, then ``python examples/desktop_chat.py
MODEL.gguf``.

What it shows of embedding: the model is loaded and the answer is made in other threads, so the
window always reacts; pieces of the answer wait in a queue that the window empties sixty times a
second, however fast they come.
"""

from __future__ import annotations

import argparse
import html
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QCloseEvent, QKeySequence, QShortcut, QTextCursor
from PySide6.QtWidgets import (
    QApplication,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QTextEdit,
    QVBoxLayout,
    QWidget,
)

from ggext import GgextError, Model, Reading, Reply, Sampling, Text

_FRAME = 16  # milliseconds


class ChatWindow(QWidget):
    """A conversation with the model in a file. ``messages`` is what was said so far."""

    def __init__(self, path: Path, sampling: Sampling | None = None) -> None:
        super().__init__()
        self.messages: list[dict[str, str]] = []
        self.model: Model | None = None
        self._path = path
        self._sampling = sampling
        self._reply: Reply | None = None
        self._stopping = False
        #: From other threads: pieces of the answer, and what the window should do.
        self._inbox: queue.SimpleQueue[str | Callable[[], None]] = queue.SimpleQueue()
        self._build()
        self._timer = QTimer(self, interval=_FRAME)
        self._timer.timeout.connect(self._work)
        self._timer.start()
        self._thread = self._start(self._load)

    @property
    def busy(self) -> bool:
        """Whether the model is being loaded or an answer is on its way."""
        return self.model is None or self._reply is not None

    def send(self) -> None:
        """Asks what was typed."""
        text = self.input.text().strip()
        if not text or self.busy or self.model is None:
            return
        self.input.clear()
        self.messages.append({"role": "user", "content": text})
        self._append(f"<p><b>You:</b> {html.escape(text)}</p><p><b>Model:</b> </p>")
        try:
            self._reply = self.model.chat(self.messages, sampling=self._sampling)
        except GgextError as error:
            self._finish("", str(error))
            return
        self._stopping = False
        self._thread = self._start(self._answer, self._reply)
        self._show_state()

    def stop(self) -> None:
        """Ends the answer; what is there of it stays."""
        if self._reply is not None:
            self._stopping = True
            self._reply.cancel()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """Ends the answer and frees the model."""
        self._timer.stop()
        self.stop()
        self._thread.join()
        self._work()  # a model that was loaded meanwhile
        if self.model is not None:
            self.model.close()
        event.accept()

    # In other threads: nothing here touches the window.

    def _load(self) -> None:
        try:
            model = Model(self._path, when_full="turns")
        except GgextError as error:
            self._inbox.put(partial(self.status.setText, str(error)))
        else:
            self._inbox.put(partial(self._loaded, model))

    def _answer(self, reply: Reply) -> None:
        text, problem = "", ""
        try:
            for event in reply.events():
                if isinstance(event, Text):
                    text += event.text
                    self._inbox.put(event.text)
                elif isinstance(event, Reading):
                    self._inbox.put(
                        partial(self._show_progress, event.done, event.total)
                    )
        except GgextError as error:
            problem = str(error)
        self._inbox.put(partial(self._finish, text, problem))

    # In the window's thread.

    def _work(self) -> None:
        """Does what has come together since the last frame, and shows all pieces at once."""
        text = ""
        for _ in range(self._inbox.qsize()):
            item = self._inbox.get()
            if isinstance(item, str):
                text += item
                continue
            self._insert(text)
            text = ""
            item()
        self._insert(text)

    def _loaded(self, model: Model) -> None:
        self.model = model
        self.setWindowTitle(self._path.name)
        self._show_state()

    def _finish(self, text: str, problem: str) -> None:
        reply, self._reply = self._reply, None
        if problem or not text:
            self.messages.pop()  # the question that has no answer
        else:
            self.messages.append({"role": "assistant", "content": text})
        self._show_state()
        if problem:
            self.status.setText(problem)
        elif reply is not None:
            self.status.setText(
                f"{reply.count} tokens{', stopped' if self._stopping else ''}"
            )

    def _build(self) -> None:
        self.setWindowTitle(f"{self._path.name} …")
        self.resize(640, 480)
        self.transcript = QTextEdit(readOnly=True)
        self.input = QLineEdit(placeholderText="Ask something")
        self.input.returnPressed.connect(self.send)
        self.send_button = QPushButton("Send")
        self.send_button.clicked.connect(self.send)
        self.stop_button = QPushButton("Stop")
        self.stop_button.clicked.connect(self.stop)
        QShortcut(QKeySequence(Qt.Key.Key_Escape), self, self.stop)
        self.status = QLabel("loading …", wordWrap=True)
        self.progress = QProgressBar(format="reading %v of %m tokens")
        self.progress.hide()
        row, column = QHBoxLayout(), QVBoxLayout(self)
        for widget in (self.input, self.send_button, self.stop_button):
            widget.setEnabled(False)
            row.addWidget(widget)
        column.addWidget(self.transcript)
        column.addLayout(row)
        column.addWidget(self.progress)
        column.addWidget(self.status)

    def _show_state(self) -> None:
        self.progress.hide()
        for widget in (self.input, self.send_button):
            widget.setEnabled(not self.busy)
        self.stop_button.setEnabled(self._reply is not None)
        if self.model is not None:
            self.status.setText(
                "thinking …"
                if self.busy
                else f"{self.model.context:,} tokens of context"
            )
        if not self.busy:
            self.input.setFocus()

    def _show_progress(self, done: int, total: int) -> None:
        self.progress.setVisible(done < total)
        self.progress.setMaximum(total)
        self.progress.setValue(done)

    def _append(self, rich_text: str) -> None:
        self.transcript.append(rich_text)
        self.transcript.verticalScrollBar().setValue(
            self.transcript.verticalScrollBar().maximum()
        )

    def _insert(self, text: str) -> None:
        """Adds to the answer, and follows it only if its end is what is looked at."""
        bar = self.transcript.verticalScrollBar()
        follows = bar.value() == bar.maximum()
        cursor = QTextCursor(self.transcript.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.insertText(text)
        if follows:
            bar.setValue(bar.maximum())

    @staticmethod
    def _start(target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments)
        thread.start()
        return thread


def main() -> int:
    parser = argparse.ArgumentParser(description="Chat with a GGUF file in a window.")
    parser.add_argument("model", type=Path)
    path = parser.parse_args().model
    application = QApplication(sys.argv[:1])
    window = ChatWindow(path)
    window.show()
    return application.exec()


if __name__ == "__main__":
    sys.exit(main())
