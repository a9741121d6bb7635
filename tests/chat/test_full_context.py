"""A full context in the chat: counts, turns that leave, what the user reads of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chat_lines import transcript_of
from fake_chat import TEMPLATE, Letters, QueuedEngine, Script, chat, room

from ggext.chat.conversation import Conversation
from ggext.chat.fit import Room, choices
from ggext.chat.notices import notices
from ggext.chat.transcript import Turn
from ggext.runtime.engine import Sampling


def test_a_full_context_is_told_in_counts_and_nothing_is_lost(tmp_path: Path) -> None:
    screen = Script("Hello", "x" * 50, "Ok?", f"/save {tmp_path}/chat.json")
    engine = QueuedEngine("Hi!", "Yes.", n_ctx=40)
    conversation = chat(engine, screen)
    assert screen.text == transcript_of(
        f"""
        > Hello
        < Hi!
        = context: 11 of 40 tokens, trained on 2,000; read 8, reused 0; wrote 3
        > {"x" * 50}
        ! with this turn the chat has 64 tokens, 24 more than the context of 40 holds. The turn was not sent, nothing \
was dropped; what helps:
        -   /ctx 1024 makes a context that holds it: it takes 0.5 MiB in addition to the weights, 1.0 GiB of memory are free
        -   /when-full POLICY reads a text of any length: of what leaves the context, stream forgets all, landmark brings \
back what resembles the question, compress keeps the tokens that stand out
        -   a shorter text, or a part of it at a time
        > Ok?
        < Yes.
        = context: 21 of 40 tokens, trained on 2,000; read 6, reused 11; wrote 4
        > /save {tmp_path}/chat.json
        - saved 2 questions to {tmp_path}/chat.json
        > ^D
        """
    )
    assert [turn.content for turn in conversation.turns] == [
        "Hello",
        "Hi!",
        "Ok?",
        "Yes.",
    ]


def test_an_answer_that_fills_the_context_says_so_and_is_kept() -> None:
    screen = Script("Hello")
    conversation = chat(QueuedEngine("abcdefghij", n_ctx=12), screen)
    assert screen.lines[1] == "< abcde"
    assert screen.lines[2:4] == [
        "- the context is full: the answer stops here, nothing was dropped",
        "- /save FILE keeps the chat, /clear starts over",
    ]
    assert conversation.turns[-1] == Turn("assistant", "abcde")


def test_whole_oldest_turns_leave_and_the_user_is_told() -> None:
    screen = Script(f"Hello {'there ' * 4}", "And you?", "x" * 15)
    engine = QueuedEngine("Hi!", "Well.", "Yes.", n_ctx=100)
    conversation = chat(engine, screen, system="Be kind.", drop_turns=True)
    left = (
        "the 2 oldest turns left it, from “Hello there there there there” on; the model does "
        "not see them any more"
    )
    assert screen.lines[7:10] == [
        "< Yes.",
        f"- the context was full: {left}, /save keeps them",
        "= context: 47 of 100 tokens, trained on 2,000; read 32, reused 11; wrote 4",
    ]
    assert Letters().text(engine.prompts[2]) == (
        "«s»«|system|»Be kind.«|user|»And you?«|bot|»Well.«/s»«|user|»"
        + "x" * 15
        + "«|bot|»"
    )
    assert conversation.turns[2].content == "Hi!"
    assert conversation.dropped_turns == 2


def test_turns_leave_in_the_middle_of_an_answer_and_it_goes_on() -> None:
    screen = Script("Hello there", "Tell me")
    engine = QueuedEngine("Hi!", "abcdefgh" * 4, "XYZ", n_ctx=52)
    conversation = chat(engine, screen, drop_turns=True, max_tokens=40)
    assert conversation.turns[-1].content.endswith("XYZ")
    answered = conversation.turns[-1].content.removesuffix("XYZ")
    assert len(answered) > 8
    assert Letters().text(engine.prompts[-1]) == f"«s»«|user|»Tell me«|bot|»{answered}"
    assert any("the 2 oldest turns left it" in line for line in screen.lines)


def test_what_cannot_fit_without_any_other_turn_is_still_an_error() -> None:
    screen = Script("Hello", "x" * 80)
    conversation = chat(QueuedEngine("Hi!", n_ctx=60), screen, drop_turns=True)
    assert any("than the context of 60 holds" in line for line in screen.lines)
    assert (len(conversation.turns), conversation.dropped_turns) == (2, 0)


def test_what_left_is_told_of_each_turn_also_after_a_new_start() -> None:
    """The second text loses fewer tokens than the first one had lost; that they left is told all
    the same."""
    engine = QueuedEngine("One.", "Two.", "Three.")
    conversation = Conversation(Letters(), engine, Sampling())
    told = []
    for total in (500, 620, 620):
        engine.ever_dropped = total
        list(conversation.ask("?"))
        conversation.clear()
        assert conversation.outcome is not None
        told.append(conversation.outcome.dropped)
    assert told == [500, 120, 0]


def test_what_left_before_a_cache_was_restored_is_no_news() -> None:
    """The first turn after a start told of 896 tokens, of which 768 had left in the last one."""
    engine = QueuedEngine("One.")
    conversation = Conversation(Letters(), engine, Sampling())
    engine.ever_dropped = 768
    conversation.is_cached()
    engine.ever_dropped = 896
    list(conversation.ask("?"))
    assert conversation.outcome is not None
    assert conversation.outcome.dropped == 128


def test_what_cannot_be_brought_back_any_more_is_told() -> None:
    engine = QueuedEngine("One.", "Two.")
    conversation = Conversation(Letters(), engine, Sampling())
    told = []
    for engine.ever_dropped, engine.forgotten in ((2000, 1500), (2000, 1500)):
        list(conversation.ask("?"))
        assert conversation.outcome is not None
        told.append(notices(conversation.outcome))
    assert (
        "1,500 tokens that had left the context cannot be brought back any more"
        in (told[0][1])
    )
    assert "--evicted-memory" in told[0][1]
    assert told[1] == []


def test_self_extend_is_offered_more_cells() -> None:
    """Its far tokens share positions: no other file is needed."""
    small = Room(Path("model.gguf"), 100, 800, 200, None, None, None, "self-extend")
    assert list(choices(small, 5000, 0, running=False)) == [
        "--ctx 6144 makes a context that holds it",
        "a shorter text, or a part of it at a time",
    ]


def test_the_context_is_told_in_counts_that_add_up(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("Facts.")
    screen = Script(
        "Hello",
        f"/file {tmp_path}/d.txt",
        "/context",
        "/undo",
        "/context",
        "/clear",
        "/context",
    )
    chat(QueuedEngine("Hi!"), screen, system="Be kind.")
    made_for = "the file is made for 8,000, the model was trained on 2,000"
    empty = f"- 0 of 1,000 tokens are used, 1,000 are free; {made_for}"
    told = [
        line for line in screen.lines if " tokens are used" in line or "- used:" in line
    ]
    assert told == [
        f"- 20 of 1,000 tokens are used, 980 are free; {made_for}",
        "- used: system prompt 8, questions 5, answers 3, template 4",
        empty,
        empty,
    ]
    assert f"- waiting for the next turn: 7 of {tmp_path}/d.txt" in screen.lines


def test_what_the_template_inserts_is_shown() -> None:
    own = "{% if messages[0].role != 'system' %}<|system|>You are a cat.{% endif %}"
    template = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}" + own)
    screen = Script("/system", "Hello", "/context")
    chat(QueuedEngine("Hi!"), screen, template=template)
    assert screen.lines[1] == (
        "- the template inserts its own system prompt: You are a cat.\n/system TEXT replaces it"
    )
    assert "the template's own system prompt 14" in screen.text


def test_the_context_is_compressed_where_the_policy_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []
    engine = QueuedEngine("Hi!")
    engine.compress = shares.append  # type: ignore[attr-defined]
    engine.ever_dropped = 123
    screen = Script("/compress", "/compress 0.25", "/compress half")
    chat(engine, screen)
    refused = "! the context of a chat with /when-full stop cannot be compressed"
    assert screen.text.count(refused) == 3
    assert shares == []
    monkeypatch.setattr(
        "fake_chat.room", lambda engine: replace(room(engine), when_full="compress")
    )
    screen = Script("/compress", "/compress 0.25", "/compress half")
    chat(engine, screen)
    assert shares == [0.5, 0.25]
    assert "- what stands out stays: 123 tokens left the context" in screen.lines
    assert "! /compress takes a share such as 0.5, not 'half'" in screen.lines
