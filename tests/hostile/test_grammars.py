"""A stranger's grammar or schema is refused in one line or followed within bounds of time and memory.
GGEXT_LONGER=100 (`make fuzz`) tries more random ones."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hostile.grammars import GRAMMARS, SCHEMAS

LONGER = int(os.environ.get("GGEXT_LONGER", "1"))

# Reads grammars as lines of JSON, follows each for some steps, and says how that went.
CHILD = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import random
from schema_walks import END, matcher
import numpy as np
from ggext.errors import GgextError
from ggext.runtime.constraint import json_grammar
from ggext.runtime.sampling import Sampling

def follow(kind, text):
    grammar = json_grammar(text) if kind == "schema" else text
    Sampling(grammar=grammar)
    checked = time.process_time()
    if kind == "grammar" and "<" in text:
        return checked, 0.0  # it names tokens
    following, chance, slowest = matcher(grammar), random.Random(1), 0.0
    for _ in range(int(sys.argv[1])):
        start = time.process_time()
        mask = np.frombuffer(following.compute_bitmask(), np.uint8)
        slowest = max(slowest, time.process_time() - start)
        if following.is_error():
            break
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:END])
        if not len(allowed):
            break
        following.consume_token(int(chance.choice(allowed)))
    return checked, slowest

for line in sys.stdin:
    name, kind, text = json.loads(line)
    start = time.process_time()
    try:
        checked, slowest = follow(kind, text)
        said = ""
    except GgextError as refused:
        checked, slowest, said = time.process_time(), 0.0, str(refused)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps([name, checked - start, slowest, memory, said]), flush=True)
"""


def followed(cases: list[tuple[str, str, str]]) -> list[Any]:
    """What a child said of the cases: name, seconds to check, slowest step, MB, its refusal."""
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(min(100, 25 * LONGER))],
        input="".join(json.dumps(case) + "\n" for case in cases),
        env={**os.environ, "PYTHONPATH": tests},
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases), (cases[len(answers)][0], done.returncode, done.stderr[-500:])
    return answers


def check(answers: list[Any]) -> None:
    for name, seconds, slowest, memory, said in answers:
        assert seconds < 5, name
        assert slowest < 2, name
        assert memory < 512, name
        assert said.isprintable(), name
        assert len(said) < 600, name


@pytest.mark.skipif(sys.platform != "linux", reason="limits and measures as Linux does")
def test_attacks_on_grammars_and_schemas() -> None:
    pytest.importorskip("llguidance")
    cases = [(name, "grammar", text) for name, text in GRAMMARS.items()]
    check(followed([*cases, *((name, "schema", text) for name, text in SCHEMAS.items())]))


PARTS = (
    '"a"|[b-d]|.|( |)|{2,3}|{500}|*|+|?| \\| |root|x|y|\n|x ::= |y ::= |"\\x41"|[^|]|<[5]>|!|#|""|"é|'
    "{999999999}|{,}|::=|[z-a]|\\U0001F600|\0"
).split("|")
KEYWORDS = (
    "type items properties anyOf oneOf allOf enum const minimum maximum multipleOf minLength maxLength "
    "pattern format minItems maxItems prefixItems additionalProperties patternProperties required $ref "
    "$defs minProperties maxProperties exclusiveMinimum not uniqueItems"
).split()
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        1e300,
        1e-300,
        2**60,
        "",
        "#",
        "#/$defs/a",
        "string",
        "object",
    ),
    *("array", "integer", "^a{3}$", "(a|b)*c{2,}", "\\d+", "date", "uuid", [], {}, ["a"], [1, "a"]),
]


def random_grammar(chance: random.Random) -> str:
    return "root ::= " + "".join(chance.choices(PARTS, k=chance.randint(1, 40)))


def random_schema(chance: random.Random, depth: int = 0) -> Any:
    if depth > 3 or chance.random() < 0.2:
        return chance.choice(VALUES)
    return {
        keyword: random_value(chance, keyword, depth)
        for keyword in chance.choices(KEYWORDS, k=chance.randint(1, 4))
    }


def random_value(chance: random.Random, keyword: str, depth: int) -> Any:
    if chance.random() < 0.3:
        return chance.choice(VALUES)
    schema = random_schema(chance, depth + 1)
    if keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        return [schema, random_schema(chance, depth + 1)]
    if keyword in ("properties", "patternProperties", "$defs"):
        return {"a": schema, "b": random_schema(chance, depth + 1)}
    return schema


@pytest.mark.skipif(sys.platform != "linux", reason="limits and measures as Linux does")
@pytest.mark.parametrize("seed", range(LONGER))
def test_random_grammars_and_schemas(seed: int) -> None:
    pytest.importorskip("llguidance")
    chance = random.Random(seed)
    cases = [(f"grammar {i}", "grammar", random_grammar(chance)) for i in range(200)]
    cases += [(f"schema {i}", "schema", json.dumps(random_schema(chance))) for i in range(200)]
    start = time.monotonic()
    answers = followed(cases)
    assert time.monotonic() - start < 300
    check(answers)
    assert {bool(said) for *_, said in answers} == {True, False}  # some are taken, some refused
