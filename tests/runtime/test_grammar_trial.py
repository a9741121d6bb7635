"""The compile of a grammar never holds a program for long, and can be ended while it goes on."""

from __future__ import annotations

import pytest

from ggext.errors import UsageError
from ggext.runtime import child, constraint, grammar_trial
from ggext.runtime.sampling import Sampling

pytest.importorskip("llguidance")

#: Each item may be left out, so that the parser searches rows of all of them: some seconds.
SLOW = "root ::= " + '"a"* ' * 15_000
#: Some hundredths of a second.
LARGE = "root ::= " + " ".join('"a"?' for _ in range(600))


def test_a_grammar_that_takes_long_is_refused_and_not_compiled_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constraint, "_matcher", None)
    with pytest.raises(UsageError, match="it takes more than 1 s to compile"):
        Sampling(grammar=SLOW)


def test_a_large_grammar_and_a_large_schema_are_taken() -> None:
    Sampling(grammar=LARGE)
    names = {f"a{i}": {"type": "string"} for i in range(300)}
    constraint.json_grammar({"type": "object", "properties": names})


def test_ctrl_c_ends_a_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child ends with it, though it does not look at its input while it compiles."""
    started: list[child.Child] = []

    def interrupted(process: child.Child) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(child.Child, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grammar_trial.survive("nowhere:nothing", "grammar", SLOW)
    assert started[0]._process.returncode == -9


def test_a_program_that_can_start_no_child_compiles_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child, "_command", lambda: ["/nowhere"])
    Sampling(grammar=LARGE + " ")


def test_what_llguidance_gives_up_on_is_one_short_line() -> None:
    message = "panic: assertion failed: symbols <backtrace> 0: <unknown>\n 1: <unknown>"
    assert constraint._line(message) == "panic: assertion failed: symbols"
