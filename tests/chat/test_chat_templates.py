"""Chat templates: rendered as transformers renders them, or refused."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fake_chat import Letters, QueuedEngine, Script, chat

from ggext.chat.prompt import Prompts
from ggext.chat.reasoning import marks_of, tags_of
from ggext.chat.template import ChatTemplate, TemplateChoice, TemplateError
from ggext.chat.transcript import Role, Turn
from ggext.errors import UsageError


def render(source: str, *turns: Turn) -> str:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatTemplate(source, special).render(turns or (Turn("user", "hi"),))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            (
                "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor "
                "%}"
            ),
            "hi\n",
        ),
        ("{{ {'a': 'ü<'} | tojson }}", '{"a": "ü<"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hi"),
        (
            "{% for i in range(9) %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "01",
        ),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ tools is none and documents is none }}", "True"),
        ("{{ 'a,b'.split(',')[-1].upper().replace('B', 'c') ~ 1 ~ none }}", "c1None"),
        ("{{ messages | map(attribute='role') | join('/') | indent(2) }}", "user"),
        ("{{ undefined_name }}{{ 'x' * 3 + '-' * 2 }}", "xxx--"),
        ("{% for i in range(2) %}{{ 'a'.replace('a', 'b') }}{% endfor %}", "bb"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n ** 2 }}", "4"),
    ],
)
def test_templates_render_as_transformers_does(source: str, text: str) -> None:
    assert render(source) == text


HOSTILE = {
    "python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.keys() }}",
    "change of the turns": "{{ messages.append(1) }}",
    "endless loop": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "long range": "{{ range(10**7) | list | length }}",
    "long text": "{{ 'a' * 10**9 }}",
    "long list": "{{ [1] * 10**9 }}",
    "large power": "{{ 9 ** 1000000000 }}",
    "squares": (
        "{% set n = namespace(s=9) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}"
    ),
    "padding": "{{ 'a'.center(10**9) }}",
    "padding by a filter": "{{ 'a' | center(10**9) }}",
    "padding by format": "{{ '{:>1000000000}'.format(1) }}",
    "padding by %": "{{ '%1000000000d' % 1 }}",
    "padding of JSON": "{{ [[1]] | tojson(indent=10**9) }}",
    "doubling by ~": (
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s "
        "%}{% endfor %}"
    ),
    "doubling by +": (
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s "
        "%}{% endfor %}"
    ),
    "doubling by replace": "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}"
    "{% set n.s = n.s.replace('a', 'aa') %}{% endfor %}",
    "doubling by join": "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}"
    "{% set n.s = n.s.join([n.s, n.s]) %}{% endfor %}",
    "doubling by tojson": "{% set n = namespace(s='\\\\') %}{% for i in range(60) %}"
    "{% set n.s = n.s | tojson %}{% endfor %}",
    "long output": "{% for i in range(90000) %}{{ '0123456789' * 9 }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "nesting": "{{" + "(" * 9999,
    "other files": "{% include '/etc/passwd' %}",
    "syntax": "{% if %}",
    "division": "{{ 1 / 0 }}",
    "control characters": "{{ raise_exception('\\x1b[2J\\nno') }}",
    "too long": "x" * (2 << 20),
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_ends_in_one_line(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggext.chat.template._RENDER_SECONDS", 0.5)
    with pytest.raises(TemplateError, match="chat template") as refused:
        render(source)
    assert str(refused.value).isprintable()


def test_a_list_that_holds_itself_sixty_times_over_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ggext.chat.template._RENDER_SECONDS", 0.3)
    double = (
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% "
        "endfor %}"
    )
    for use in (
        "{{ n.s }}",
        "{{ n.s | tojson }}",
        "{{ n.s | string }}",
        "{{ 'a' ~ n.s }}",
    ):
        with pytest.raises(TemplateError):
            render(double + use)


LOOKS_INTO_TURNS = (
    "{% for m in messages %}{% if '<|channel|>analysis' in m.content %}"
    "{{ raise_exception('a channel in a content') }}{% endif %}"
    "{% if m.content.startswith('<tool_response>') %}TOOL{% endif %}"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1].split('[/THINK]')[-1] }}"
    "{% else %}{{ m.content.replace('<tool_call>', '').replace('<|open|>', '') }}{% endif %}"
    "{% endfor %}{{ '<|channel|>' }}"
)


@pytest.mark.parametrize(
    "mark",
    [
        "</think>",
        "[/THINK]",
        "<tool_call>",
        "<tool_response>",
        "<|channel|>analysis",
        "<|open|>",
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_mark_of_the_template_that_a_turn_spells_stays_text(
    mark: str, role: Role
) -> None:
    """16 of llama.cpp's 70 templates cut an answer that spelled </think>."""
    said = f"{mark} begins, {mark}\nends {mark}"
    vocabulary = Letters(LOOKS_INTO_TURNS)
    assert vocabulary.text(Prompts(vocabulary).tokens([Turn(role, said)])) == (
        f"«s»{said}<|channel|>"
    )


def test_a_template_that_makes_its_marks_by_format_renders() -> None:
    source = (
        "{% set T = ':open' %}{% set end = '</think{}>'.format(T) %}"
        "{% for m in messages %}{{ m.content.split(end)[-1] }}{% endfor %}"
        "{{ '{0:>3}|{a[0]}|{b.c}'.format(1, a=[2], b={'c': 3}) }}{{ '%3d' % 4 }}"
        "{{ '%s-%s' | format(5, 6) }}{{ 'x' | center(3) }}"
    )
    vocabulary = Letters(source, adds_bos=False)
    text = vocabulary.text(
        Prompts(vocabulary).tokens([Turn("user", "a</think:open>b")])
    )
    assert text == "a</think:open>b  1|2|3  45-6 x "


def test_a_template_gets_its_options() -> None:
    source = (
        "{{ reasoning_effort }}{{ depth + 1 }}{{ tools is none }}{{ enable_thinking }}"
    )
    choice = TemplateChoice(source, {"reasoning_effort": "high", "depth": 2})
    prompts = Prompts(Letters(adds_bos=False), think=True, template=choice)
    assert Letters().text(prompts.tokens([Turn("user", "x")])) == "high3TrueTrue"
    given = TemplateChoice(source, {"enable_thinking": False, "depth": 0})
    assert b"False" in bytes(
        Prompts(Letters(adds_bos=False), True, given).tokens([Turn("user", "")])
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"effort": 1}, "the chat template has no option effort"),
        ({"messages": []}, "'messages' is no name"),
        ({"a b": 1}, "'a b' is no name"),
        ({"depth": {1, 2}}, "depth is not plain data"),
    ],
)
def test_an_option_that_no_template_takes_is_refused(
    options: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        Prompts(Letters(), template=TemplateChoice("{{ depth }}", options))


def test_a_hostile_template_is_looked_through_in_no_time() -> None:
    for source in (
        "set a='" * 150_000,
        "'{}'.format(" * 80_000,
        "<|" * 500_000,
        "set " * 250_000,
    ):
        start = time.monotonic()
        marks_of(source)
        tags_of(source)
        assert time.monotonic() - start < 2


def test_a_refusal_is_the_templates_own_words() -> None:
    with pytest.raises(
        TemplateError, match="refuses this conversation: no system role"
    ):
        render("{{ raise_exception('no system role') }}")


def test_a_template_that_refuses_leaves_the_chat_as_it_was() -> None:
    screen = Script("Hello", "Bye")
    template = "{% if messages[-1].content == 'Hello' %}{{ raise_exception('no') }}{% endif %}x"
    conversation = chat(QueuedEngine("Ok."), screen, template=template)
    assert screen.lines[1] == "! the file's chat template refuses this conversation: no"
    assert [turn.content for turn in conversation.turns] == ["Bye", "Ok."]


def test_a_long_turn_passes_through_any_template_operation() -> None:
    long = "é" * 3_000_000
    source = (
        "{{ messages[0].content ~ '' }}{{ messages[0].content + messages[0].content }}"
    )
    assert len(render(source, Turn("user", long))) == 9_000_000
