"""An answer's text: reasoning by the template's own tags, stop strings across tokens, grammars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_chat import Letters, QueuedEngine, Script, chat

from ggext.chat.answer import AnswerText
from ggext.chat.conversation import ChatOptions, Conversation
from ggext.chat.reasoning import Splitter, Tags, Thought, tags_of, without_reasoning
from ggext.chat.transcript import Turn
from ggext.errors import ModelError, UsageError
from ggext.runtime.sampling import Sampling

THINK = Tags("<think>", "</think>")
TEMPLATES = {
    "Qwen 3": (
        "{{- '<think>\\n' + reasoning_content + '\\n</think>\\n\\n' + content }}",
        THINK,
    ),
    "R1 distilled: cuts it off": (
        "{% set content = content.split('</think>')[-1] %}",
        THINK,
    ),
    "Magistral": (
        "{{ '[THINK]' + block['thinking'] + '[/THINK]' }}",
        Tags("[THINK]", "[/THINK]"),
    ),
    "Command R7B": (
        "{%- if not enable_thinking -%}<|START_THINKING|><|END_THINKING|>{%- endif %}",
        Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    ),
    "Seed-OSS": (
        "<seed:think>{{ x }}</seed:think>",
        Tags("<seed:think>", "</seed:think>"),
    ),
    "Gemma 4": (
        "'<|channel>thought\\n' + thinking_text + '\\n<channel|>'",
        Tags("<|channel>thought", "<channel|>"),
    ),
    "Hy3: a constant in its marks": (
        "{% set T = ':open' %}{% set b = '<think{}>'.format(T) %}{% set e = '</think{}>'.format(T) %}",
        Tags("<think:open>", "</think:open>"),
    ),
    "Apertus": (
        "{% set inner_token = '<|inner_prefix|>' %}{% set outer_token = '<|inner_suffix|>' %}",
        Tags("<|inner_prefix|>", "<|inner_suffix|>", asks_by_itself=True),
    ),
    "no reasoning": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %} I think",
        None,
    ),
}


@pytest.mark.parametrize(("template", "tags"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_template_names_the_tags(template: str, tags: Tags | None) -> None:
    assert tags_of(template) == tags


def split(
    text: str, tags: Tags | None, inside: bool = False, step: int = 1
) -> tuple[str, str]:
    """Reasoning and answer of a text that comes in pieces of ``step`` characters."""
    splitter = Splitter(tags, inside)
    pieces = [
        piece
        for at in range(0, len(text), step)
        for piece in splitter.feed(text[at : at + step])
    ]
    pieces += splitter.end()
    thoughts = "".join(piece for piece in pieces if isinstance(piece, Thought))
    return thoughts, "".join(
        piece for piece in pieces if not isinstance(piece, Thought)
    )


GPT_OSS = tags_of("<|channel|>analysis<|message|>")
KIMI_K3 = tags_of("{{ '<|open|>' + tag }}{{ '<|close|>' + tag }}{{ '<|end_of_msg|>' }}")
SOLAR_OPEN = tags_of(
    "{{ '<|begin|>assistant<|think|>' + message.reasoning + '<|end|>' }}"
)


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "tags", "inside"),
    [
        (
            "why<|close|>think<|sep|><|open|>response<|sep|>so<|close|>response<|sep|>",
            KIMI_K3,
            True,
        ),
        (
            "<|think|>why<|end|><|begin|>assistant<|content|>so<|end|>",
            SOLAR_OPEN,
            False,
        ),
        ("<|inner_prefix|>why<|inner_suffix|>so", TEMPLATES["Apertus"][1], False),
        ("why</think:open>so", TEMPLATES["Hy3: a constant in its marks"][1], True),
    ],
    ids=["Kimi K3", "Solar Open", "Apertus", "Hy3"],
)
def test_reasoning_of_other_channels_is_parted(
    text: str, tags: Tags, inside: bool, step: int
) -> None:
    assert split(text, tags, inside, step) == ("why", "so")


def test_no_reasoning_is_asked_of_other_channels() -> None:
    assert KIMI_K3 is not None
    assert SOLAR_OPEN is not None
    opened = "<|open|>message<|sep|><|open|>response<|sep|>"
    assert without_reasoning(opened, KIMI_K3) == opened
    assert without_reasoning("<|begin|>assistant", SOLAR_OPEN).endswith(
        "assistant<|content|>"
    )
    apertus = TEMPLATES["Apertus"][1]
    assert apertus is not None
    assert without_reasoning("<|assistant_start|>", apertus) == "<|assistant_start|>"


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "tags", "inside", "parts"),
    [
        ("<think>\nHm < 3.\n</think>\n\nYes.", THINK, False, ("Hm < 3.\n", "Yes.")),
        ("\n<think></think>Yes.", THINK, False, ("", "Yes.")),
        ("Hm.</think>Yes.</think>", THINK, True, ("Hm.", "Yes.</think>")),
        ("Yes, <think> is a tag.", THINK, False, ("", "Yes, <think> is a tag.")),
        ("<thin ice", THINK, False, ("", "<thin ice")),
        ("<think>Never done </thi", THINK, False, ("Never done </thi", "")),
        ("<think>a</think>b", None, False, ("", "<think>a</think>b")),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            GPT_OSS,
            False,
            ("Hm.", "Yes."),
        ),
        ("<|channel|>final<|message|>Yes.", GPT_OSS, False, ("", "Yes.")),
    ],
)
def test_reasoning_is_parted_from_the_answer(
    text: str, tags: Tags | None, inside: bool, parts: tuple[str, str], step: int
) -> None:
    assert split(text, tags, inside, step) == parts


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<bot>", "<bot><think>\n\n</think>\n\n"),
        ("<bot><think>\n", "<bot><think>\n\n</think>\n\n"),
        ("<bot><think>", "<bot><think>\n\n</think>\n\n"),
        ("<bot><think>\n\n</think>\n\n", "<bot><think>\n\n</think>\n\n"),
    ],
)
def test_no_reasoning_is_an_empty_block(prompt: str, opened: str) -> None:
    assert without_reasoning(prompt, THINK) == opened


REASONING = (
    "{{ bos_token }}{% for m in messages %}<|{{ 'bot' if m.role == 'assistant' else m.role }}|>{{ "
    "m.content }}"
    "{% endfor %}<|bot|>{% if enable_thinking is defined and not enable_thinking "
    "%}<think></think>{% endif %}"
)


def test_a_chat_shows_reasoning_apart_and_leaves_it_out_of_the_next_prompt() -> None:
    engine, screen = (
        QueuedEngine("<think>Hm.</think>Yes.", "No."),
        Script("Really?", "And?"),
    )
    conversation = chat(engine, screen, template=REASONING)
    assert screen.lines[1:3] == ["? Hm.", "< Yes."]
    assert conversation.turns[1] == Turn("assistant", "Yes.", "Hm.")
    assert (
        Letters().text(engine.prompts[1])
        == "«s»«|user|»Really?«|bot|»Yes.«|user|»And?«|bot|»"
    )


def test_think_off_asks_the_template_and_a_grammar_asks_for_none() -> None:
    for options, sampling in (
        (ChatOptions(think=False), Sampling()),
        (ChatOptions(), Sampling(grammar='root ::= "x"')),
    ):
        conversation = Conversation(
            Letters(REASONING), QueuedEngine(), sampling, options
        )
        tokens = conversation.prompts.tokens([Turn("user", "Hi")])
        assert Letters().text(tokens).endswith("«|bot|»<think></think>")
        assert not conversation.prompts.opens_reasoning(tokens)


def test_a_control_token_that_is_a_tag_is_read_as_one() -> None:
    """Magistral's and gpt-oss's tags are control tokens, which have no text of their own."""
    tags = Tags("<|user|>", "<|bot|>")  # two of the control tokens of Letters
    answer = AnswerText(Letters(), tags)
    pieces = [*answer.extend([259, *b"Hm.", 260, *b"Yes.", 258]), *answer.end()]
    assert (answer.reasoning, answer.text) == ("Hm.", "Yes.")
    assert "".join(pieces) == "Hm.Yes."


@pytest.mark.parametrize(
    ("answer", "stop", "text"),
    [
        ("One.\nUser: Two.", ["\nUser:"], "One."),
        ("aab aaab", ["aaab"], "aab "),
        ("no stop here \nUser", ["\nUser:"], "no stop here \nUser"),
        ("abcabd", ["abd", "bca"], "a"),
        ("Zoë ☃ no", ["☃"], "Zoë "),
        ("stop", ["stop"], ""),
    ],
)
def test_stop_strings_cut_the_answer_across_tokens(
    answer: str, stop: list[str], text: str
) -> None:
    screen = Script("?")
    conversation = chat(QueuedEngine(answer), screen, stop=tuple(stop))
    assert conversation.turns[-1].content == text
    assert conversation.outcome is not None
    assert conversation.outcome.finish == ("eog" if text == answer else "stop")
    assert (
        screen.lines[1] == f"< {text}" if text else not screen.lines[1].startswith("<")
    )


def test_stop_strings_are_not_looked_for_in_the_reasoning() -> None:
    conversation = chat(
        QueuedEngine("<think>a\n\nb</think>c\n\nd"),
        Script("?"),
        template=REASONING,
        stop=("\n\n",),
    )
    assert conversation.turns[-1] == Turn("assistant", "c", "a\n\nb")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="a stop string is empty"):
        ChatOptions(stop=("",))


def test_an_engine_that_fails_in_the_middle_loses_nothing() -> None:
    class Failing(QueuedEngine):
        def generate(self, sampling: Sampling, max_tokens: int | None = None) -> Any:
            generation = super().generate(sampling, max_tokens)

            def failing() -> Any:
                yield from b"Half an E"
                raise ModelError("no more memory")

            generation.__class__ = type(
                "G", (type(generation),), {"__iter__": lambda _: failing()}
            )
            return generation

    screen = Script("Hello")
    conversation = chat(Failing("x"), screen, stop=("END",))
    assert screen.lines[1:3] == ["< Half an ", "! no more memory"]
    assert [turn.content for turn in conversation.turns] == ["Hello", "Half an E"]


class TestGrammars:
    """Through llama.cpp, on a real small model that knows nothing of JSON."""

    @pytest.fixture
    def session(self, small_gguf: Path) -> Any:
        pytest.importorskip("llama_cpp")
        from ggext.runtime.engine import Model, Session

        with Model.open(small_gguf) as model, Session(model) as session:
            yield session

    def answer(self, session: Any, sampling: Sampling, max_tokens: int = 480) -> str:
        model = session.model
        session.evaluate(model.tokenize("Once upon a time"))
        return b"".join(
            map(model.token_to_piece, session.generate(sampling, max_tokens))
        ).decode()

    @pytest.mark.parametrize("temperature", [0.0, 1.5])
    def test_an_answer_follows_a_json_schema(
        self, session: Any, temperature: float
    ) -> None:
        from ggext.runtime.sampling import json_grammar

        schema = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 9},
                "age": {"type": "integer", "maximum": 99},
            },
            "required": ["name", "age"],
        }
        grammar = json_grammar(json.dumps(schema))
        for seed in range(3):
            sampling = Sampling(
                temperature=temperature, seed=seed, grammar=grammar, repeat_penalty=1.1
            )
            said = json.loads(self.answer(session, sampling))
            assert isinstance(said["age"], int)
            assert len(said["name"]) <= 9

    def test_an_answer_follows_gbnf_and_ends_with_it(self, session: Any) -> None:
        said = self.answer(
            session,
            Sampling(temperature=1.0, seed=1, grammar='root ::= ("yes" | "no") "."'),
        )
        assert said in ("yes.", "no.")

    def test_a_grammar_that_is_none_is_refused(self, session: Any) -> None:
        session.evaluate([1])
        with pytest.raises(
            UsageError, match="the grammar is not GBNF with a rule root"
        ):
            session.generate(Sampling(grammar="roof ::= x"))

    @pytest.mark.parametrize(
        "grammar",
        [
            'root ::= ("yes" | "no") "."',
            'root ::= [a-z]+ " " word*\nword ::= "the" | [^a-m] | "th" word',
            'root ::= "[" item ("," item)* "]"\nitem ::= root | [0-9]{1,3} | ""',
            'root ::= ("a" | "ab" | "abc")* "d"',
        ],
    )
    def test_the_mask_is_the_one_of_llama_cpp(self, session: Any, grammar: str) -> None:
        """Along random answers; control tokens have no text here, which llama.cpp gives them."""
        import ctypes

        import numpy as np

        from ggext.runtime.constraint import Constraint
        from ggext.runtime.llama import lib

        model, module = session.model, lib()
        sampler = module.llama_sampler_init_grammar(
            model.vocabulary(), grammar.encode(), b"root"
        )
        constraint, chance = Constraint(grammar, model), np.random.default_rng(1)

        def is_plain(token: int) -> bool:
            """Whether llama.cpp sees its text: not NUL, no part of a character."""
            if model.is_eog(token):
                return True
            try:
                text = model.token_to_piece(token).decode()
            except UnicodeDecodeError:
                return False
            return text != "" and "\0" not in text

        plain = np.array([is_plain(token) for token in range(model.n_vocab)])
        try:
            for _ in range(30):
                rows = np.zeros(
                    model.n_vocab, [("id", "<i4"), ("logit", "<f4"), ("p", "<f4")]
                )
                rows["id"] = np.arange(model.n_vocab)
                data = ctypes.cast(
                    rows.ctypes.data, ctypes.POINTER(module.llama_token_data)
                )
                array = module.llama_token_data_array(data, model.n_vocab, -1, False)
                module.llama_sampler_apply(sampler, ctypes.byref(array))
                theirs = np.flatnonzero(np.isfinite(rows["logit"]) & plain)
                mask = constraint.mask()
                assert {*np.flatnonzero(mask & plain)} <= {*theirs}
                # A text that is forced has one spelling in the mask, but may be spelled otherwise.
                assert all(
                    mask[token] or constraint.allows(int(token)) for token in theirs
                )
                going_on = [
                    int(token) for token in theirs if not model.is_eog(int(token))
                ]
                if not going_on:
                    break
                token = int(chance.choice(going_on))
                constraint.take(token)
                module.llama_sampler_accept(sampler, token)
        finally:
            module.llama_sampler_free(sampler)

    @pytest.mark.parametrize(
        "schema",
        ["{", '{"type": "nothing"}', '{"$ref": "https://example.com/x"}', "[]"],
    )
    def test_a_schema_that_is_none_is_refused(self, session: Any, schema: str) -> None:  # noqa: ARG002 - needs llama_cpp
        from ggext.runtime.sampling import json_grammar

        with pytest.raises(
            UsageError, match="the JSON schema cannot be made into a grammar"
        ):
            json_grammar(schema)
