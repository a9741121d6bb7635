"""What the terminal shows, what Ctrl-C reaches, and one question from the command line."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from terminal import CTRL_C, CTRL_D, GREEDY, Keyboard, needs_pty, typed

if TYPE_CHECKING:
    pass
np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")


@needs_pty
def test_a_chat_in_a_terminal(
    keyboard: Callable[..., Keyboard], endless_gguf: Path, tmp_path: Path
) -> None:
    chat = keyboard(endless_gguf, *GREEDY)
    chat.say("Where is")
    assert " the. The hungry frog" in chat.wait_for("wrote 12")
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
    (tmp_path / "long.txt").write_text("The hungry frog meets the dog. " * 300)
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
    keyboard: Callable[..., Keyboard], endless_gguf: Path, tmp_path: Path
) -> None:
    chat = keyboard(endless_gguf, *GREEDY)
    chat.say("\x1b[200~one\ntwo\x1b[201~")
    chat.wait_for("wrote 12")
    chat.say(f"/save {tmp_path}/chat.json")
    chat.wait_for("saved 1 question")
    assert (
        json.loads((tmp_path / "chat.json").read_text())["turns"][0]["content"]
        == "one\ntwo"
    )
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
    keyboard: Callable[..., Keyboard], chat_gguf: Path, story: Path
) -> None:
    chat = keyboard(chat_gguf, "-f", story, "--temperature", "0")
    chat.wait_for(f"{story}: 301 tokens go into the next turn")
    chat.wait_for("which the question decides")
    chat.type("Where is the crown?\r")
    chat.wait_for("Look for the crown ")
    chat.wait_for("read 54 at ")
    chat.wait_for(" and 256 while you typed, reused 0; wrote 6")
    assert chat.leave() == 0


@needs_pty
def test_what_was_read_ahead_is_kept_with_the_session(
    keyboard: Callable[..., Keyboard], chat_gguf: Path, story: Path
) -> None:
    chat = keyboard(chat_gguf, "-f", story, "--session", "crown")
    chat.wait_for("which the question decides")
    chat.type(CTRL_D)
    assert chat.process.wait(30) == 0
    os.close(chat.side)
    notices = typed([chat_gguf, "--session", "crown"])
    assert (
        notices[0]
        == "session crown: 0 questions; 256 tokens of KV cache restored in N s"
    )


@needs_pty
def test_ctrl_c_while_a_document_is_read_ahead_keeps_what_was_read(
    keyboard: Callable[..., Keyboard], slow_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("The hungry frog meets the dog. " * 300)
    chat = keyboard(
        slow_gguf,
        "-f",
        tmp_path / "long.txt",
        "--temperature",
        "0",
        "--max-tokens",
        "5",
    )
    chat.wait_for("reading the document meanwhile: ")
    chat.wait_for(" left")  # after the first batch
    chat.type(CTRL_C)
    chat.wait_for(
        "the reading stops, what was read is kept; Ctrl-C again or Ctrl-D leaves"
    )
    chat.say("Why?")
    seen = chat.wait_for("wrote 5")
    assert "meanwhile" not in seen
    assert re.search(
        r"read [\d,]+ at [\d,]+/s and [\d,]+ while you typed, reused 0;", seen
    )
    assert chat.leave() == 0


@needs_pty
def test_a_whole_chat_by_its_transcript(
    chat_gguf: Path, story: Path, tmp_path: Path
) -> None:
    """A session is started, left, continued and exported; the screen is compared line by line."""
    first = typed(
        [chat_gguf, "--temperature", "0", "--session", "crown"],
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
        "computed with 256 tokens at once at most, 1 thread, flash attention off",
        "",
        ">",
    ]
    second = typed(
        [chat_gguf, "--temperature", "0", "--session", "crown"],
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
