"""The commands of the chat."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_lines import transcript_of
from fake_chat import Answered, Letters, QueuedEngine, Script, chat, room

from ggext.chat.commands import obey
from ggext.chat.conversation import Conversation
from ggext.chat.loop import Chat
from ggext.runtime.engine import Sampling


def test_commands() -> None:
    screen = Script("/help", "/fole bar", "/save", "/clear now", "/quit", "never read")
    chat(QueuedEngine(), screen)
    assert screen.text == transcript_of(
        '''
        > /help
        - /help                  this list
        - /file FILE             puts a document into the next turn
        - /context               what the context holds, and what it could
        - /regen                 answers the last question again
        - /undo                  takes the last question and its answer back
        - /clear                 starts over; the system prompt stays
        - /system [TEXT]         shows the system prompt, or sets another
        - /set [NAME VALUE]      shows the settings, or changes one
        - /when-full [POLICY]    shows what stays in a full context, or changes it
        - /compress [SHARE]      leaves this share of the context, what stands out most [0.5]
        - /ctx [N]               shows the size of the context in tokens, or changes it
        - /save FILE             saves the chat
        - /load FILE             continues a saved chat
        - /export FILE           writes the chat as Markdown
        - /quit                  leaves, as Ctrl-D does
        - """                    begins and ends a text of several lines; Alt-Enter too
        > /fole bar
        ! there is no command /fole; did you mean /file?; /help lists them; a text that begins with / is sent \
with a space in front
        > /save
        ! the command is /save FILE
        > /clear now
        ! the command is /clear
        > /quit
        '''
    )


def test_undo_and_regen() -> None:
    engine, screen = (
        QueuedEngine("One.", "Two.", "Three."),
        Script("/undo", "/regen", "Hi", "/regen", "/undo", "/undo"),
    )
    conversation = chat(engine, screen)
    assert [line for line in screen.lines if line[0] in "<!-"] == [
        "! there is nothing to take back",
        "! there is no answer to make again; ask something first",
        "< One.",
        "< Two.",
        "- taken back: Hi",
        "! there is nothing to take back",
    ]
    assert conversation.turns == []
    assert engine.prompts[0] == engine.prompts[1]


def test_regen_varies_a_seed_and_keeps_the_answer_that_it_could_not_better() -> None:
    seeds: list[int | None] = []

    class Seeded(QueuedEngine):
        def generate(
            self, sampling: Sampling, max_tokens: int | None = None
        ) -> Answered:
            seeds.append(sampling.seed)
            return super().generate(sampling, max_tokens)

    screen = Script("Hi", "/regen")
    chat(Seeded("One.", "Two."), screen)
    assert seeds == [1, 2]
    screen = Script("Hi", "/regen")
    engine = QueuedEngine("One.", "Two.")
    screen.notice = lambda _text: setattr(screen, "interrupt_at", "prefill")  # type: ignore[method-assign]
    conversation = chat(engine, screen, sampling=Sampling(temperature=0))
    assert [turn.content for turn in conversation.turns] == ["Hi", "One."]


def test_a_question_that_a_crash_left_unanswered_is_asked_again() -> None:
    engine, screen = QueuedEngine("Hi!"), Script("/regen")
    conversation = Conversation(Letters(), engine, Sampling())
    talk = Chat(conversation, screen, room(engine))
    talk.unanswered = "Hello"
    talk.run(obey)
    assert [turn.content for turn in conversation.turns] == ["Hello", "Hi!"]
    assert talk.unanswered is None


def test_the_system_prompt_is_shown_and_changed() -> None:
    engine, screen = (
        QueuedEngine("Hi!"),
        Script("/system", "/system Be brief.", "/system", "Hello"),
    )
    chat(engine, screen)
    assert [line for line in screen.lines if line.startswith("-")] == [
        "- there is no system prompt; /system TEXT sets one",
        "- the system prompt is another now; the next turn reads the chat again after it",
        "- Be brief.",
    ]
    assert (
        Letters().text(engine.prompts[0])
        == "«s»«|system|»Be brief.«|user|»Hello«|bot|»"
    )


def test_settings_are_shown_and_changed() -> None:
    script = (
        "temperature 0.5",
        "seed none",
        "stop END",
        "max-tokens 3",
        "think show",
        "think off",
    )
    wrong = (
        "temperature x",
        "temperature -1",
        "top-p 2",
        "max-tokens 0",
        "think loud",
        "colour red",
        "seed",
    )
    screen = Script(*(f"/set {line}" for line in (*script, *wrong)), "/set", "Hello")
    conversation = chat(QueuedEngine("abcdef"), screen)
    shown = [line for line in screen.lines if line.startswith("- ")]
    assert shown[:3] == [
        "- temperature: 0.8 → 0.5",
        "- seed: 1 → none",
        "- stop: none → 'END'",
    ]
    assert shown[6:15] == [
        "- temperature      0.5",
        "- top-k            40",
        "- top-p            0.95",
        "- min-p            0.05",
        "- repeat-penalty   1.0",
        "- seed             none",
        "- max-tokens       3",
        "- stop             'END'",
        "- think            off",
    ]
    assert len([line for line in screen.lines if line.startswith("! ")]) == len(wrong)
    assert conversation.turns[-1].content == "abc"
    assert conversation.prompts.think is False


def test_the_policy_for_a_full_context() -> None:
    screen = Script(
        "/when-full",
        "/when-full turns",
        "/when-full",
        "/when-full stream",
        "/when-full later",
    )
    conversation = chat(QueuedEngine(), screen)
    choices = "stop, turns, stream, recompute, self-extend, landmark, compress"
    assert [line for line in screen.lines if line[0] in "-!"] == [
        f"- when the context is full: stop; the choices are {choices}",
        "- when the context is full: turns",
        f"- when the context is full: turns; the choices are {choices}",
        "! this chat cannot change its context; open it again with --ctx N",
        f"! when-full is later, but must be one of {choices}",
    ]
    assert conversation.options.drop_turns


def test_ctrl_c_twice_at_the_prompt_leaves() -> None:
    screen = Script(
        KeyboardInterrupt, "", KeyboardInterrupt, KeyboardInterrupt, "never read"
    )
    chat(QueuedEngine(), screen)
    assert screen.lines.count("> ^C") == 3
    assert screen.inputs == ["never read"]


def test_a_chat_is_exported_as_markdown(tmp_path: Path) -> None:
    screen = Script(
        "Hello", f"/export {tmp_path}/chat.md", f"/export {tmp_path}/chat.md"
    )
    chat(QueuedEngine("Hi *you*!"), screen, system="Be kind.")
    assert (tmp_path / "chat.md").read_text() == (
        "**System**\n\nBe kind.\n\n---\n\n**User**\n\nHello\n\n---\n\n**Assistant**\n\nHi *you*!\n"
    )
    assert screen.lines[-2] == f"! {tmp_path}/chat.md exists; choose another name"


def test_a_document_that_cannot_fit_is_told_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 60)
    screen = Script(f"/file {tmp_path}/long.txt")
    chat(QueuedEngine(n_ctx=50), screen)
    assert screen.lines[2:4] == [
        "- that is more than fits:",
        (
            "-   /ctx 1024 makes a context that holds it: it takes 0.5 MiB in addition to the weights, 1.0 "
            "GiB of memory are free"
        ),
    ]


def test_documents_are_held_to_the_context_together(tmp_path: Path) -> None:
    (tmp_path / "doc.txt").write_text("x" * 600 + "\n")
    screen = Script(*[f"/file {tmp_path}/doc.txt"] * 2)
    chat(QueuedEngine(), screen)
    notices = [line for line in screen.lines if line.startswith("- ")]
    assert notices[0].endswith(
        "doc.txt: 601 tokens go into the next turn; 1,000 are available"
    )
    assert notices[1].endswith(
        "601 tokens go into the next turn, 1,202 with what waits already; 1,000 are available"
    )
    assert notices[2] == "- that is more than fits:"


def test_clear_keeps_the_system_prompt() -> None:
    engine = QueuedEngine("Hi!", "Hi again!")
    chat(engine, Script("Hello", "/clear", "Hello"), system="Be kind.")
    assert engine.prompts[0] == engine.prompts[1]


@pytest.mark.parametrize("leave", ["/bye", "/exit", "/quit", "exit", "quit"])
def test_leaving_in_the_words_of_other_programs(leave: str) -> None:
    screen = Script("/?", leave, "never read")
    chat(QueuedEngine(), screen)
    assert screen.lines[-1] == f"> {leave}"
    assert any("/help" in line for line in screen.lines)


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (" /clear is a command", "/clear is a command"),
        ("//usr/bin", "/usr/bin"),
        ("/etc/hosts holds names", "/etc/hosts holds names"),
        ("/* a comment */", "/* a comment */"),
        ('"""one line"""', "one line"),
    ],
)
def test_a_text_that_begins_with_a_slash_can_be_sent(typed: str, sent: str) -> None:
    conversation = chat(QueuedEngine("Yes."), Script(typed))
    assert conversation.turns[0].content == sent


def test_a_block_between_triple_quotes_is_one_turn() -> None:
    screen = Script('"""', "first", "", "/help", 'last"""', "Next")
    conversation = chat(QueuedEngine("A", "B"), screen)
    asked = [turn.content for turn in conversation.turns if turn.role == "user"]
    assert asked == ["first\n\n/help\nlast", "Next"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("temp 0", "- temperature: 0.8 → 0.0"),
        ("top_p 0.5", "- top-p: 0.95 → 0.5"),
        ("parameter num_predict 9", "- max-tokens: none → 9"),
        ("temperatur 1", "! there is no setting temperatur; did you mean temperature?"),
        ("tmep 1", "! there is no setting tmep; did you mean temperature?"),
        (r"stop \n", r"- stop: none → '\n'"),
        ("temperature 0.8", "- temperature: 0.8, as it was"),
    ],
)
def test_settings_by_the_names_of_other_programs(typed: str, said: str) -> None:
    screen = Script(f"/set {typed}")
    chat(QueuedEngine(), screen)
    assert screen.lines[1] == said


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("/temp 0", "; did you mean /set temperature?"),
        ("/tmep 0", "; did you mean /set temperature?"),  # it was /help
        ("/contxt", "; did you mean /context?"),
        ("/sing a song", ""),
    ],
)
def test_a_command_that_is_none_names_the_one_that_was_meant(
    typed: str, meant: str
) -> None:
    screen = Script(typed)
    chat(QueuedEngine(), screen)
    assert screen.lines[1].startswith(
        f"! there is no command {typed.split()[0]}{meant}; /help"
    )
