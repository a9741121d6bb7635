"""Arguments of `ggext.Model` that are wrong: each is an error of ggext."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext import GgextError, Model
from ggext.arguments import check as check_type
from ggext.errors import UsageError


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": "user"},
        {"role": "king", "content": ""},
        {"role": "user", "content": 1},
    ],
)
def test_what_is_no_message_is_refused(model: Model, message: dict[str, str]) -> None:
    with pytest.raises(GgextError, match="a message needs a role"):
        model.chat([message])


def _words_of(value: object) -> str:
    """The same in every process: an object's own words hold its address."""
    return "object" if type(value) is object else repr(value)


WRONG = (
    5,
    1.5,
    None,
    True,
    b"x",
    "x",
    object(),
    [],
    {},
    [1],
    {"a": 1},
    -1,
    float("nan"),
    "é" * 9,
)


# What each parameter takes of these, so that nothing is asked of the model for it.
RIGHT: dict[str, tuple[object, ...]] = {
    "messages": ("x", "é" * 9),
    "text": ("x", "é" * 9),
    "prompt": ("x", "é" * 9),
    "sampling": (None, {}),
    "max_tokens": (None, 5),
    "stop": ("x", "é" * 9, []),
    "think": (None, True),
    "cancel": (None,),
    "special": (True, None),
}


@pytest.mark.parametrize("wrong", WRONG, ids=_words_of)
@pytest.mark.parametrize(
    ("method", "parameter"),
    [
        *(
            ("chat", name)
            for name in ("messages", "sampling", "max_tokens", "stop", "think")
        ),
        *(("complete", name) for name in ("prompt", "sampling", "max_tokens", "stop")),
        ("chat", "cancel"),
        ("count", "text"),
        ("count_chat", "messages"),
        ("save_cache", "path"),
        ("restore_cache", "path"),
    ],
)
def test_every_wrong_type_is_an_error_of_ggext(
    model: Model, method: str, parameter: str, wrong: object
) -> None:
    if any(
        wrong is right or wrong == right
        for right in RIGHT.get(parameter, ("x", "é" * 9))
    ):
        pytest.skip("it is right")
    first = {"chat": {"messages": "Hi"}, "complete": {"prompt": "Hi"}}.get(method, {})
    arguments = first | {"max_tokens": 0} if first else {}
    with pytest.raises(GgextError):
        getattr(model, method)(**arguments | {parameter: wrong})


@pytest.mark.parametrize("wrong", WRONG, ids=_words_of)
@pytest.mark.parametrize(
    "kind",
    "MemoryOptions RopeGeometry RopeScaling RopeTable Sampling Settings SessionOptions Turn "
    "ConvertOptions".split(),
)
def test_every_wrong_option_is_an_error_of_ggext(kind: str, wrong: object) -> None:
    """Each field of each public dataclass: a value of another type, or an error of ggext."""
    import ggext
    from ggext.convert import ConvertOptions

    options: Any = {"ConvertOptions": ConvertOptions}.get(kind) or getattr(ggext, kind)
    needed = {
        "RopeGeometry": {"n_rot": 2, "head_dim": 2, "base": 1.0, "layout": "norm"}
        | {"trained_context": 8},
        "RopeTable": {"inv_freq": (1.0,), "attention_factor": 1.0, "context": 8},
        "Turn": {"role": "user", "content": ""},
        "ConvertOptions": {"model": Path("x")},
    }.get(kind, {})
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        try:
            made = options(**needed | {field.name: wrong})
        except GgextError:
            continue
        check_type(field.name, getattr(made, field.name), hints[field.name])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"path": 5}, "path is 5"),
        (
            {"context": "big"},
            "context is 'big', but must be a whole number or one of auto",
        ),
        ({"context": 3.5}, "context is 3.5"),
        ({"context": -1}, "context is -1, but must be at least 1"),
        (
            {"context": 10**11},
            "context is 100000000000, but must be at most 2147483647",
        ),
        (
            {"when_full": "explode"},
            "when_full is 'explode', but must be one of turns, auto, stop",
        ),
        ({"settings": {"parallel": 2}}, "settings is"),
        ({"load_progress": 3}, "load_progress is 3, but must be a function"),
    ],
)
def test_a_model_refuses_wrong_arguments(
    arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        Model(**{"path": "nothing.gguf"} | arguments)


def test_an_empty_conversation_and_one_that_is_answered_are_refused(
    model: Model,
) -> None:
    with pytest.raises(UsageError, match="the conversation is empty"):
        model.chat([])
    answered = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UsageError, match="ends with a message of the assistant"):
        model.chat(answered)
    with pytest.raises(
        UsageError, match=r"sampling has no 'temprature'; did you mean temperature"
    ):
        model.chat("x", sampling={"temprature": 1})
