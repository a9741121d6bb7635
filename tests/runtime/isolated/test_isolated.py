"""`Model(..., isolated=True)`: the same answers from another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from isolated_models import (
    ANSWER,
    GREEDY,
    LONG,
    QUESTION,
    TEXT,
    kill,
    pid_of,
    told,
    user,
)

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from processes import gone

from ggext import (
    ContextFullError,
    GgextError,
    Model,
    Reading,
    Sampling,
    SessionOptions,
    Settings,
    json_grammar,
)
from ggext.demo import sample_text
from ggext.errors import GgufError, UsageError
from ggext.runtime.model import CancelledError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": GREEDY},
        {"sampling": Sampling(temperature=2, seed=7), "max_tokens": 40},
        {
            "sampling": Sampling(seed=3, repeat_penalty=1.3),
            "stop": "the",
            "max_tokens": 40,
        },
        {"sampling": Sampling(seed=1, grammar='root ::= "oar" | "map"')},
        {"sampling": GREEDY, "max_tokens": 0},
    ],
)
def test_the_tokens_are_those_of_one_process(
    model: Model, inside: Model, options: dict[str, Any]
) -> None:
    assert told(model, **options) == told(inside, **options)


def test_what_is_read_and_reused_is_the_same(model: Model, inside: Model) -> None:
    counts = []
    for each in (model, inside):
        each.chat(user("The dog sings."), max_tokens=0).text()
        replies = [
            each.chat(question, sampling=GREEDY)
            for question in (LONG, LONG[:], QUESTION)
        ]
        readings = [
            [event for event in reply.events() if isinstance(event, Reading)]
            for reply in replies
        ]
        prefills = [reply.prefill for reply in replies]
        counts.append(
            (readings, [(p.reused, p.evaluated) for p in prefills if p is not None])
        )
    assert counts[0] == counts[1]


def test_text_and_facts_are_the_same(model: Model, inside: Model) -> None:
    for ask in (
        lambda each: each.count(TEXT),
        lambda each: each.count_chat(LONG),
        lambda each: (each.context, each.trained, each.path.name),
        lambda each: each.complete(
            "The map <|end|>", special=True, sampling=GREEDY
        ).text(),
        lambda each: each.count("ends in a lone surrogate \ud800"),
    ):
        assert ask(model) == ask(inside)


def test_nothing_of_llama_cpp_is_loaded_in_the_host(demo_gguf: Path) -> None:
    code = (
        "import sys\nfrom ggext import Model\n"
        f"with Model({str(demo_gguf)!r}, context=512, isolated=True) as model:\n"
        "    print(model.complete('The dog', max_tokens=2).text() != '')\n"
        "print('llama_cpp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("True\nFalse\n", "")


def test_errors_are_the_same(demo_gguf: Path, tmp_path: Path, model: Model) -> None:
    with pytest.raises(ContextFullError) as full:
        model.chat(user(sample_text(600)))
    assert full.value.available == 512
    with pytest.raises(UsageError, match="the grammar is not GBNF"):
        model.chat(QUESTION, sampling=Sampling(grammar="tree ::= [a-z]")).text()
    with pytest.raises(GgufError, match="No such file"):
        Model(tmp_path / "none.gguf", isolated=True)
    with pytest.raises(UsageError, match="eval_callback"):
        Model(
            demo_gguf, isolated=True, settings=Settings(SessionOptions(eval_callback=1))
        )
    with (
        Model(
            demo_gguf, context=256, isolated=True, settings=Settings(parallel=2)
        ) as two,
        pytest.raises(UsageError, match="parallel=2"),
    ):
        two.save_cache(tmp_path / "book.kv")
    with pytest.raises(GgextError, match="the model is closed"):
        two.chat(QUESTION)
    assert model.chat(QUESTION, sampling=GREEDY).text() == ANSWER


def test_a_load_is_followed_and_cancelled(demo_gguf: Path) -> None:
    fractions: list[float] = []
    options: dict[str, Any] = {"context": 256, "isolated": True}
    with Model(
        demo_gguf, **options, load_progress=lambda f: fractions.append(f) is None
    ):
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
    with pytest.raises(CancelledError, match="was cancelled"):
        Model(demo_gguf, **options, load_progress=lambda _: False)


def test_another_file_in_its_place_is_refused(demo_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(demo_gguf.read_bytes())
    with Model(path, context=256, isolated=True) as model:
        kill(model)
        assert gone(pid_of(model))
        os.utime(path, (1, 1))
        with pytest.raises(GgextError, match="another file than when it was opened"):
            model.chat(QUESTION)


def test_a_schema_constrains_an_isolated_answer(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
    }
    reply = model.chat(
        QUESTION, sampling=Sampling(seed=1, grammar=json_grammar(schema))
    )
    assert "".join(reply.text().split())[:4] == '{"a"'
