"""`ggext chat` as a process, and in a terminal of its own: keys in, the screen out."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    pass


GGEXT = (sys.executable, "-c", "from ggext.cli import main; main()", "chat")


def ggext(
    *arguments: str | Path, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [*GGEXT, *map(str, arguments)]
    return subprocess.run(
        command, input=stdin or b"", capture_output=True, check=False, timeout=60
    )


GREEDY = ("--temperature", "0", "--max-tokens", "12")


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
            command,
            stdin=far,
            stdout=far,
            stderr=far,
            start_new_session=True,
            env=environment,
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
            assert left > 0, (
                f"{text!r} did not come within {seconds} s after {self.seen!r}"
            )
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


needs_pty = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no pty module"
)


def lines_on_screen(raw: str, columns: int = 120) -> list[str]:
    """What a terminal shows after it got this."""
    import pyte

    screen = pyte.Screen(columns, 200)
    pyte.Stream(screen).feed(raw.replace("\r\n", "\n").replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display]


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
