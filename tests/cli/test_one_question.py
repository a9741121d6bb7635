"""One question from the command line, answered without a terminal."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from terminal import GGEXT, GREEDY, ggext

if TYPE_CHECKING:
    pass
np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")


BEFORE = "Where is"


@pytest.fixture(scope="module")
def continued(endless_gguf: Path) -> bytes:
    """The 12 tokens that the engine itself puts after BEFORE."""
    from ggext.runtime.engine import Model, Sampling, Session

    with Model.open(endless_gguf) as model, Session(model) as session:
        session.evaluate(model.tokenize(BEFORE))
        answer = session.generate(Sampling(temperature=0), 12)
        return b"".join(map(model.token_to_piece, answer))


def test_a_question_on_the_command_line(endless_gguf: Path, continued: bytes) -> None:
    done = ggext(endless_gguf, "-p", BEFORE, *GREEDY)
    assert (done.returncode, done.stdout) == (0, continued + b"\n")
    assert done.stderr.decode().splitlines() == [
        "the file has no chat template: the model continues the text as it is",
        "the answer was stopped at its longest length (--max-tokens)",
    ]


def test_a_question_on_the_standard_input(endless_gguf: Path, continued: bytes) -> None:
    done = ggext(endless_gguf, *GREEDY, stdin=BEFORE.encode() + b"\n")
    assert (done.returncode, done.stdout) == (0, continued + b"\n")


def test_a_document_stands_before_the_question(
    endless_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "doc.txt").write_text("Tim had a red ball.\n")
    question = ("-p", "Once upon a time,", *GREEDY)
    whole = ggext(endless_gguf, "-p", "Tim had a red ball.\nOnce upon a time,", *GREEDY)
    from_file = ggext(endless_gguf, "-f", tmp_path / "doc.txt", *question)
    from_pipe = ggext(
        endless_gguf, "-f", "-", *question, stdin=b"Tim had a red ball.\n"
    )
    assert whole.stdout == from_file.stdout == from_pipe.stdout
    assert whole.returncode == from_file.returncode == from_pipe.returncode == 0


def test_a_document_that_does_not_fit_gives_the_counts(
    endless_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "doc.txt").write_text("Tim had a red ball.\n" * 500)
    done = ggext(endless_gguf, "-f", tmp_path / "doc.txt", "-p", "Why?")
    assert (done.returncode, done.stdout) == (3, b"")
    assert re.search(
        rb"--target-context \d+ .* it takes .* in addition to the weights, .* of memory are free",
        done.stderr,
    )
    assert re.search(
        rb"the text has [\d,]+ tokens and the context holds 512; shorten it",
        done.stderr,
    )
    assert b"Traceback" not in done.stderr


def test_a_seed_repeats_the_answer(endless_gguf: Path) -> None:
    question = (
        endless_gguf,
        "-p",
        BEFORE,
        "--temperature",
        "20",
        "--min-p",
        "0",
        "--max-tokens",
        "20",
    )
    same = {ggext(*question, "--seed", "7").stdout for _ in range(2)}
    assert len(same) == 1
    assert ggext(*question, "--seed", "8").stdout not in same


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--top-p", "2"], 2, "top-p is 2.0, but must be from 0 to 1"),
        (
            ["-f", "nothing.txt"],
            2,
            "nothing.txt cannot be read: No such file or directory",
        ),
        (["-f", "-", "-f", "-"], 2, "can be read once"),
        (["--load", "nothing.json"], 1, "nothing.json cannot be read"),
        (["--ctx", "0"], 2, "0 is 0 tokens; from 1 to"),
        (
            ["--context", "many"],
            2,
            "'many' is not a number of tokens such as 16384, 16,384, 16k or 1M, or auto",
        ),
    ],
)
def test_a_mistake_ends_in_one_line(
    endless_gguf: Path, arguments: list[str], code: int, message: str
) -> None:
    done = ggext(endless_gguf, "-p", "Hi", *arguments)
    assert done.returncode == code
    assert done.stdout == b""
    assert message in done.stderr.decode().splitlines()[-1]


def test_no_question_at_all_is_said(endless_gguf: Path) -> None:
    done = ggext(endless_gguf)
    assert done.returncode == 2
    assert b"there is no question" in done.stderr


def test_a_reader_that_goes_away_gets_no_traceback(endless_gguf: Path) -> None:
    command = [*GGEXT, str(endless_gguf), "-p", "Once"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read()
        process.wait(60)
    assert b"Traceback" not in error
    assert b"Exception" not in error


def test_events_are_one_json_object_a_line(chat_gguf: Path, story: Path) -> None:
    done = ggext(
        chat_gguf,
        "-f",
        story,
        "-p",
        "Where is the crown?",
        "--temperature",
        "0",
        "--json",
    )
    assert done.returncode == 0
    assert done.stderr == b""
    events = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
    kinds = [event["event"] for event in events]
    assert set(kinds) == {"prefill", "text", "end"}
    prefill = [event for event in events if event["event"] == "prefill"]
    assert (prefill[0]["done"], prefill[0]["seconds_left"]) == (0, None)
    assert prefill[-1]["done"] == prefill[-1]["total"] == 310
    end = events[-1]
    assert end["text"] == "".join(
        event["text"] for event in events if event["event"] == "text"
    )
    assert re.fullmatch(r"Look for the crown \w+\.", end["text"])
    assert end["finish"] == "eog"
    assert end["context"] == {"used": 316, "allocated": 1024, "trained": 256}
    assert end["prefill"]["evaluated"] == 310
    assert end["generated"]["tokens"] == 6


def test_an_error_is_an_event_too(chat_gguf: Path, story: Path) -> None:
    done = ggext(chat_gguf, *["-f", story] * 4, "-p", "Why?", "--json")
    events = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
    assert done.returncode == 3
    assert [event["event"] for event in events][-1] == "error"
    assert "the context holds 1,024" in events[-1]["text"]
    assert any("--target-context" in event["text"] for event in events[:-1])


def test_a_book_is_piped_and_asked(chat_gguf: Path, story: Path) -> None:
    """cat book.txt | ggext chat model.gguf -p ..."""
    question = ("-p", "Where is the crown?", "--temperature", "0")
    piped = ggext(chat_gguf, *question, stdin=story.read_bytes())
    named = ggext(chat_gguf, "-f", story, *question)
    assert piped.stdout == named.stdout
    assert re.fullmatch(rb"Look for the crown \w+\.\n", piped.stdout)
    assert (piped.returncode, piped.stderr) == (0, b"")


def test_a_stop_string_and_a_grammar_from_the_command_line(
    chat_gguf: Path, story: Path, tmp_path: Path
) -> None:
    question = ("-f", story, "-p", "Where is the crown?", "--temperature", "0")
    assert ggext(chat_gguf, *question, "--stop", "the crown").stdout == b"Look for \n"
    schema = (
        '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, '
        '"required": ["n"]}'
    )
    assert isinstance(
        json.loads(ggext(chat_gguf, *question, "--json-schema", schema).stdout)["n"],
        int,
    )
    (tmp_path / "g.gbnf").write_text('root ::= "Look " [a-c]+ "."')
    cut = ggext(
        chat_gguf, *question, "--grammar", tmp_path / "g.gbnf", "--max-tokens", "30"
    )
    assert re.match(rb"Look [abc]", cut.stdout)


def test_another_template_and_its_options(chat_gguf: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% if effort != 'high' or n != 3 %}{{ raise_exception('effort ' ~ effort) }}{% endif %}"
        "{{ messages[-1].content }}"
    )
    question = (chat_gguf, "-p", "Where?", *GREEDY, "--template", template)
    options = ("--template-option", "effort=high", "--template-option", "n=3")
    assert ggext(*question, *options).returncode == 0
    refused = ggext(*question, *options, "--template-option", "effort=low")
    assert refused.returncode == 1
    assert b"refuses this conversation: effort low" in refused.stderr
    unknown = ggext(*question, "--template-option", "depth=1")
    assert b"ggext: the chat template has no option depth" in unknown.stderr
    assert b"is not NAME=VALUE" in ggext(*question, "--template-option", "depth").stderr


def test_an_answer_that_is_cut_before_its_grammar_ends_is_an_error(
    chat_gguf: Path,
) -> None:
    question = (chat_gguf, "-p", "Where?", "--temperature", "0", "--json-schema")
    word = '{"enum": ["a word that takes more than one token"]}'
    cut = ggext(*question, word, "--max-tokens", "2")
    assert cut.returncode == 1
    assert (
        b"ggext: the answer is not whole: --max-tokens cut it before its grammar ended"
        in (cut.stderr)
    )
    whole = ggext(*question, word, "--max-tokens", "99")
    assert whole.returncode == 0
    # Cut after its last token it is whole.
    assert ggext(*question, '{"const": 1}', "--max-tokens", "1").returncode == 0


@pytest.mark.parametrize(("given", "allocated"), [("auto", 512), ("256", 256)])
def test_the_context_is_a_number_or_auto(
    endless_gguf: Path, given: str, allocated: int
) -> None:
    done = ggext(
        endless_gguf, "-p", "Once", "--context", given, "--max-tokens", "1", "--json"
    )
    assert json.loads(done.stdout.splitlines()[-1])["context"]["allocated"] == allocated


def test_an_answer_that_fills_the_context_exits_with_3(endless_gguf: Path) -> None:
    done = ggext(endless_gguf, "-p", "Once", "--ctx", "32", "--temperature", "0")
    assert done.returncode == 3
    assert (
        b"the context is full: the answer stops here, nothing was dropped"
        in done.stderr
    )


def test_a_text_is_read_into_a_quarter_of_its_cells(
    demo_gguf: Path, tmp_path: Path
) -> None:
    """The embedded model answers from what compress kept, and the plan says what that takes."""
    from ggext.demo import sample_text

    (tmp_path / "text.txt").write_text(sample_text(900))
    question = (
        demo_gguf,
        "-f",
        tmp_path / "text.txt",
        "-p",
        "Where is the map?",
        *GREEDY,
    )
    quarter = ("--when-full", "compress", "--ctx", "1024", "--keep", "0.25")
    done = ggext(*question, *quarter)
    assert (done.returncode, done.stdout) == (0, b"Look for the map below.\n")
    assert b"of the oldest tokens left it" in done.stderr
    refused = ggext(*question, "--keep", "0.25")
    assert refused.returncode == 2
    assert b"keep is 0.25, but only the policy compress" in refused.stderr
    command = [*GGEXT[:-1], "plan", str(demo_gguf), "--ctx", "1024", "--keep", "0.25"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "context 256 tokens" in planned.stdout
    assert "with --when-full compress it holds a text of 1,024 tokens" in planned.stdout
