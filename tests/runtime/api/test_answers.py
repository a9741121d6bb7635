"""`from ggext import Model`: the answers that a program gets."""

from __future__ import annotations

import asyncio
import doctest
import json
import logging
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from api_turns import GREEDY, TEXT, hides, user
from paths import ROOT

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

import ggext.api
import ggext.runtime.constraint
import ggext.runtime.gbnf
from ggext import (
    ContextFullError,
    GgextError,
    Model,
    Reading,
    Reasoning,
    ReplyEvent,
    Sampling,
    Settings,
    Text,
    json_grammar,
)
from ggext.chat.reasoning import Tags
from ggext.chat.template import ChatTemplate
from ggext.demo import sample_text
from ggext.errors import UsageError
from ggext.runtime.context import SessionOptions
from ggext.runtime.memory import MemoryOptions


@pytest.mark.parametrize(
    ("module", "least"),
    [(ggext.api, 16), (ggext.runtime.constraint, 2), (ggext.runtime.gbnf, 1)],
)
def test_the_examples_in_the_documentation_run(
    module: ModuleType, least: int, demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_gguf.parent)
    result = doctest.testmod(module)
    assert (result.failed, result.attempted >= least) == (0, True)


def test_the_example_in_the_docs_runs(
    demo_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = ROOT / "docs" / "runtime.md"
    code = docs.read_text("utf-8").split("```python\n")[1].split("```")[0]
    shutil.copy(demo_gguf, tmp_path / "demo-yarn4.gguf")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    exec(code, {"print": lambda piece, **_: told.append(piece)})
    assert "".join(told) == "Look for the map below."


def test_an_answer_comes_in_pieces(model: Model) -> None:
    reply = model.chat(hides("map", "below"), sampling=GREEDY)
    pieces = list(reply)
    assert "".join(pieces) == "Look for the map below."
    assert len(pieces) > 3
    assert (reply.finish, reply.count) == ("eog", 6)
    assert reply.prefill is not None
    assert reply.text() == "Look for the map below."


def test_reasoning_is_no_part_of_the_answer(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model answers "Look for the map below.", of which the tags make a block of reasoning."""
    monkeypatch.setattr(model._prompts, "tags", Tags("Look", "map"))
    reply = model.chat(hides("map", "below"), sampling=GREEDY)
    assert "".join(reply) == reply.text() == "below."
    assert reply.reasoning.strip() == "for the"

    async def ask() -> str:
        return "".join(
            [
                piece
                async for piece in model.chat(hides("map", "below"), sampling=GREEDY)
            ]
        )

    assert asyncio.run(ask()) == "below."


def test_only_what_changed_is_read_again(model: Model) -> None:
    first = model.chat(user(f"{TEXT}\nWhere is the map?"), sampling=GREEDY)
    first.text()
    again = model.chat(user(f"{TEXT}\nWhere is the oar?"), sampling=GREEDY)
    again.text()
    assert again.prefill is not None
    assert again.prefill.reused > 290
    assert again.prefill.evaluated < 10


def test_events_tell_the_reading_the_reasoning_and_the_text(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model._prompts, "tags", Tags("Look", "map"))
    question = user(
        f"{sample_text(280, seed=5)}Tom hides the map below.\nWhere is the map?"
    )
    reply = model.chat(question, sampling=GREEDY)
    events = list(reply.events())
    reading = [event for event in events if isinstance(event, Reading)]
    assert events[: len(reading)] == reading
    assert reading[0].done == 0
    assert reading[-1].done == reading[-1].total > 280
    assert reply.prefill is not None
    assert reply.prefill.evaluated == reading[-1].total
    assert (
        "".join(event.text for event in events if isinstance(event, Reasoning))
        == reply.reasoning
        == "for the "
    )
    assert [event.text for event in events if isinstance(event, Text)] == ["below", "."]

    async def ask() -> list[ReplyEvent]:
        return [event async for event in model.chat(question, sampling=GREEDY).events()]

    assert [
        event for event in asyncio.run(ask()) if not isinstance(event, Reading)
    ] == events[len(reading) :]


def test_a_stop_string_ends_the_answer_in_front_of_it(model: Model) -> None:
    for stop, text in {
        " map": "Look for the",
        " the map b": "Look for",
        "nowhere": "Look for the map below.",
    }.items():
        reply = model.chat(hides("map", "below"), sampling=GREEDY, stop=stop)
        assert reply.text() == text
        assert reply.finish == ("eog" if stop == "nowhere" else "stop")
    reply = model.chat(hides("map", "below"), sampling=GREEDY, stop=["below", " for"])
    assert (list(reply), reply.finish) == (["Look"], "stop")
    with pytest.raises(GgextError, match="a stop string is empty"):
        model.chat(user("?"), stop="")


def test_an_answer_has_the_length_that_was_asked_for(model: Model) -> None:
    for most in (0, 2):
        reply = model.chat(hides("map", "below"), sampling=GREEDY, max_tokens=most)
        assert reply.text() == ("Look for" if most else "")
        assert (reply.finish, reply.count) == ("length", most)
    with pytest.raises(GgextError, match="max_tokens is -1, but must not be negative"):
        model.chat(user("?"), max_tokens=-1)


def test_an_answer_follows_a_schema(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"place": {"enum": ["below", "aloft"]}},
        "required": ["place"],
    }
    told = set()
    for grammar in (json_grammar(schema), json_grammar(json.dumps(schema))):
        reply = model.chat(
            hides("map", "below"), sampling=Sampling(seed=7, grammar=grammar)
        )
        told.add(json.loads(reply.text())["place"])
    assert len(told) == 1
    assert told <= {"below", "aloft"}
    with pytest.raises(GgextError, match="the grammar is not GBNF"):
        model.chat(user("?"), sampling=Sampling(grammar="tree ::= [a-z]")).text()


def test_reasoning_is_asked_of_the_template(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template adds words for what it was asked; the tokens that are read tell which."""
    template = (
        "{{ messages[-1].content }}{% if enable_thinking is defined %}{{ ' the' * (9 if "
        "enable_thinking else 5) }}"
        "{% endif %}"
    )
    monkeypatch.setattr(model._prompts, "template", ChatTemplate(template, {}))
    counts = []
    for think in (None, True, False):
        reply = model.chat(user("map"), think=think, max_tokens=0)
        reply.text()
        assert reply.prefill is not None
        counts.append(reply.prefill.evaluated + reply.prefill.reused)
    assert [count - counts[0] for count in counts] == [0, 9, 5]


def test_a_base_model_continues_a_text(model: Model) -> None:
    reply = model.complete("Leo smiles again. The", sampling=GREEDY, stop="sleeps")
    assert (reply.text(), reply.finish) == (" goat dances. The dog ", "stop")
    counts = []
    for special in (False, True):
        reply = model.complete("The map <|end|>", max_tokens=0, special=special)
        reply.text()
        assert reply.prefill is not None
        counts.append(reply.prefill.evaluated + reply.prefill.reused)
    assert counts[0] > counts[1]


def test_a_conversation_is_counted_as_it_is_read(model: Model) -> None:
    messages = [{"role": "system", "content": "The dog sings."}, *hides("map", "below")]
    count = model.count_chat(messages)
    reply = model.chat(messages, sampling=GREEDY)
    reply.text()
    assert reply.prefill is not None
    assert (
        reply.prefill.evaluated + reply.prefill.reused
        == count
        > model.count(messages[1]["content"])
    )
    messages += [reply.message, {"role": "user", "content": "Where is the map?"}]
    assert messages[2] == {"role": "assistant", "content": "Look for the map below."}
    assert model.chat(messages, sampling=GREEDY).text() == "Look for the map below."


def test_a_cache_is_saved_and_restored(demo_gguf: Path, tmp_path: Path) -> None:
    question = user(f"{TEXT}\nWhere is the map?")
    with Model(demo_gguf, context=512) as model:
        answer = model.chat(question, sampling=GREEDY).text()
        assert (
            model.save_cache(tmp_path / "book.kv")
            == (tmp_path / "book.kv").stat().st_size
        )
    with Model(demo_gguf, context=512) as model:
        count = model.restore_cache(tmp_path / "book.kv")
        reply = model.chat(question, sampling=GREEDY)
        assert reply.text() == answer
        assert reply.prefill is not None
        assert reply.prefill.reused == model.count_chat(question) - 1 < count
        (tmp_path / "book.kv").write_bytes(b"GGUF")
        with pytest.raises(GgextError, match=r"book\.kv"):
            model.restore_cache(tmp_path / "book.kv")
        assert model.chat(question, sampling=GREEDY).text() == answer
    with pytest.raises(GgextError, match="the model is closed"):
        model.save_cache(tmp_path / "book.kv")
    with (
        Model(demo_gguf, context=512, settings=Settings(parallel=2)) as model,
        pytest.raises(GgextError, match="parallel=2"),
    ):
        model.save_cache(tmp_path / "book.kv")


def test_what_a_policy_dropped_is_told(demo_gguf: Path) -> None:
    """Of each answer by itself: the second text is another one, and the third a short one."""
    with Model(demo_gguf, context=256, when_full="stream") as model:
        dropped = []
        for length, seed in ((900, 1), (600, 2), (150, 3)):
            reply = model.chat(
                user(sample_text(length, seed)), sampling=GREEDY, max_tokens=4
            )
            reply.text()
            dropped.append(reply.dropped)
    assert 600 < dropped[0] < 900
    assert 300 < dropped[1] < 600
    assert dropped[2] == 0


def test_what_cannot_be_brought_back_is_told(demo_gguf: Path) -> None:
    little = MemoryOptions(retrieved=64, evicted_memory=200 * 72)
    settings = Settings(SessionOptions(memory=little))
    with Model(
        demo_gguf, context=256, when_full="landmark", settings=settings
    ) as model:
        reply = model.chat(user(sample_text(900, 1)), sampling=GREEDY, max_tokens=4)
        reply.text()
        assert reply.dropped - 200 <= reply.forgotten < reply.dropped - 170


def test_a_document_that_does_not_fit_is_refused_with_counts_before_it_is_read(
    model: Model,
) -> None:
    document = user(sample_text(600))
    with pytest.raises(ContextFullError) as full:
        model.chat(document)
    assert (full.value.requested, full.value.available) == (
        model.count_chat(document),
        512,
    )
    with pytest.raises(ContextFullError):
        model.complete(document[0]["content"])
    assert (
        model.chat(hides("oar", "aloft"), sampling=GREEDY).text()
        == "Look for the oar aloft."
    )


def test_oldest_turns_leave_and_it_is_said(
    demo_gguf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [{"role": "system", "content": "The dog sings."}]
    for seed in range(4):
        turns += [
            *user(sample_text(150, seed)),
            {"role": "assistant", "content": "The cat runs."},
        ]
    with (
        caplog.at_level(logging.WARNING, "ggext"),
        Model(demo_gguf, context=512, when_full="turns") as model,
    ):
        reply = model.chat([*turns, *hides("map", "below")], sampling=GREEDY)
        assert reply.text() == "Look for the map below."
    assert [turn.content for turn in reply.left[:1]] == [turns[1]["content"]]
    assert len(reply.left) in (4, 6)
    assert f"the {len(reply.left)} oldest turns left it" in caplog.text


def test_a_text_alone_is_one_user_turn(model: Model) -> None:
    """Everybody's first try; it was an AttributeError."""
    greedy = {"temperature": 0}
    question = "Tom hides the map below. Where is the map?"
    in_full = model.chat(
        [{"role": "user", "content": question}], sampling=Sampling(temperature=0)
    )
    assert model.chat(question, sampling=greedy).text() == in_full.text()


def test_a_reply_says_what_it_is_and_is_looped_over_once(model: Model) -> None:
    reply = model.chat("Where is the map?", max_tokens=3)
    assert repr(reply).startswith("<Reply: ")
    whole = "".join(reply)
    assert reply.text() == whole
    with pytest.raises(UsageError, match="once"):
        list(reply)
    read = model.chat("Where is the map?", max_tokens=3)
    assert read.text() == read.text()
    with pytest.raises(UsageError, match="once"):  # it was nothing, without a word
        list(read)
