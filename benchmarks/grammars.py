"""What a constraint costs a token: llguidance, as ggext uses it, against llama.cpp's own sampler.

    python benchmarks/grammars.py MODEL.gguf [--tokens 200]

Each grammar is sampled from the model (temperature 1, a fixed seed). "mask": the whole vocabulary
is asked, at every token; "one": whether one token is allowed. llama.cpp's sampler is given the same
tokens and asked the same. Prints a Markdown table of medians, and of the slowest token.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ggext.runtime.constraint import Constraint, Grammar, json_grammar
from ggext.runtime.engine import Model, Session, SessionOptions
from ggext.runtime.llama import lib
from ggext.runtime.sampling import Sampling

JSON = r"""
root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
LIST = """
root ::= item+
item ::= "- " [^\r\n\x0b\x0c]+ "\n"
"""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 5},
    },
    "required": ["name", "age", "tags"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()
    with (
        Model.open(arguments.model) as model,
        Session(model, SessionOptions(1024)) as session,
    ):
        start = time.perf_counter()
        Constraint('root ::= "a"', model)
        seconds = time.perf_counter() - start
        print(
            f"{model.n_vocab:,} tokens: the vocabulary is read in {seconds:.2f} s, once\n"
        )
        print(
            "| grammar | tokens | mask, ms | slowest | llama.cpp, ms | slowest "
            "| one, ms | llama.cpp, ms |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for name, grammar, gbnf in grammars():
            tokens = answer(session, grammar, arguments.tokens)
            row(name, model, grammar, gbnf, tokens)


def grammars() -> list[tuple[str, Grammar, str]]:
    """Name, what ggext is given, what llama.cpp is given."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    schema = json.dumps(SCHEMA)
    theirs = str(json_schema_to_gbnf(schema))
    return [
        ("any JSON object", JSON, JSON),
        ("a list of lines", LIST, LIST),
        ("a JSON schema", json_grammar(schema), theirs),
    ]


def answer(session: Session, grammar: Grammar, count: int) -> list[int]:
    session.evaluate(
        session.model.tokenize("Describe Tom in JSON, then list his tags:\n")
    )
    return list(
        session.generate(Sampling(temperature=1, seed=1, grammar=grammar), count)
    )


def row(
    name: str, model: Model, grammar: Grammar, gbnf: str, tokens: list[int]
) -> None:
    constraint, theirs = Constraint(grammar, model), Theirs(model, gbnf)
    times: list[list[float]] = [[], [], [], []]
    for token in tokens:
        for kept, call in zip(
            times,
            (
                constraint.mask,
                theirs.mask,
                lambda token=token: constraint.allows(token),
                lambda token=token: theirs.allows(token),
            ),
            strict=True,
        ):
            kept.append(timed(call))
        constraint.take(token)
        if not theirs.take(token):
            break
    mask, their_mask, one, their_one = (
        [1e3 * seconds for seconds in kept] for kept in times
    )
    print(
        f"| {name} | {len(mask)} | {statistics.median(mask):.2f} | {max(mask):.1f} "
        f"| {statistics.median(their_mask):.2f} | {max(their_mask):.1f} "
        f"| {statistics.median(one):.3f} | {statistics.median(their_one):.3f} |"
    )


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Theirs:
    """llama.cpp's grammar sampler over the same vocabulary."""

    def __init__(self, model: Model, gbnf: str) -> None:
        self._lib = lib()
        self._n_vocab = model.n_vocab
        self._sampler = self._lib.llama_sampler_init_grammar(
            model.vocabulary(), gbnf.encode(), b"root"
        )

    def mask(self) -> Any:
        return self._applied(np.arange(self._n_vocab))

    def allows(self, token: int) -> bool:
        return bool(self._applied(np.array([token]))[0])

    def take(self, token: int) -> bool:
        """Goes on, where the sampler allows the token: it would end the process."""
        allowed = self.allows(token)
        if allowed:
            self._lib.llama_sampler_accept(self._sampler, token)
        return allowed

    def _applied(self, tokens: Any) -> Any:
        rows = np.zeros(len(tokens), [("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        rows["id"] = tokens
        data = ctypes.cast(rows.ctypes.data, ctypes.POINTER(self._lib.llama_token_data))
        array = self._lib.llama_token_data_array(data, len(tokens), -1, False)
        self._lib.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return np.isfinite(rows["logit"])


if __name__ == "__main__":
    main()
