"""GBNF grammars and JSON schemas that try to end the process, to outlast it or to fill its memory.

    python tests/hostile/grammars.py SECONDS SEED

follows the known ones and then random ones in child processes. Exit code 1: one ended a child, or
took more time or memory than it may.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GRAMMARS = {
    "nest paren 100k": "root ::= " + "(" * 100000 + '"a"' + ")" * 100000,
    "nest paren 20k": "root ::= " + "(" * 20000 + '"a"' + ")" * 20000,
    "nest paren 5k": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
    "rep huge": 'root ::= "a"{1000000000}',
    "rep nested": 'root ::= ((((("a"{1000}){1000}){1000}){1000}){1000})',
    "rep range": 'root ::= "a"{0,100000}',
    "rep 2000 nested": 'root ::= (("a"{0,2000}){0,2000})',
    "star star": 'root ::= ((("a"?)*)*)*',
    "empty loop": 'root ::= (""*)*',
    "opt nest": "root ::= " + "(" * 20 + '"a"?' + ")?" * 20,
    "opt seq": "root ::= " + '"a"? ' * 60,
    "opt alt": 'root ::= ("a"|"a"|"a"|"a")*' + ' ("a"|"a")*' * 12,
    "left rec": 'root ::= root "a" | "a"',
    "left rec indirect": 'root ::= x "a"\nx ::= y\ny ::= x | "a"',
    "left rec empty": 'root ::= e root "a" | "a"\ne ::= ""',
    "left rec opt": 'root ::= "b"? root "a" | "a"',
    "right rec deep": 'root ::= "a" root | ""',
    "ambig": 'root ::= s\ns ::= s2 s2 s2 s2 | "a"\ns2 ::= "a" s | "a"',
    "exp": "\n".join(
        ["root ::= r0"]
        + [f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)]
        + ['r40 ::= "a"']
    ),
    "exp2": "\n".join(
        ["root ::= r0"]
        + [f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(30)]
        + ['r30 ::= "a"']
    ),
    "chain": "\n".join(
        ["root ::= r0"]
        + [f"r{i} ::= r{i + 1}" for i in range(100000)]
        + ['r100000 ::= "a"']
    ),
    "chain 20k": "\n".join(
        ["root ::= r0"]
        + [f"r{i} ::= r{i + 1}" for i in range(20000)]
        + ['r20000 ::= "a"']
    ),
    "chain 3k": "\n".join(
        ["root ::= r0"]
        + [f"r{i} ::= r{i + 1}" for i in range(3000)]
        + ['r3000 ::= "a"']
    ),
    "undefined": "root ::= nothing",
    "noroot": 'x ::= "a"',
    "empty": "",
    "root empty": 'root ::= ""',
    "root empty2": "root ::= ",
    "class empty": "root ::= []",
    "class neg empty": "root ::= [^]+",
    "class neg all": "root ::= [^\\x00-\\U0010FFFF]+",
    "class inv": "root ::= [z-a]+",
    "class open": "root ::= [a",
    "class esc": "root ::= [\\",
    "str esc": 'root ::= "\\',
    "str open": 'root ::= "abc',
    "U big": 'root ::= "\\UFFFFFFFF"',
    "x bad": 'root ::= "\\xZZ"',
    "bad utf8": 'root ::= "\udcff"',
    "surrogate": 'root ::= "\ud800"',
    "nul": 'root ::= "a"\x00 "b"',
    "token ref": "root ::= <[5]>",
    "token ref big": "root ::= <[99999999]>",
    "token ref big2": "root ::= <[4294967295]>",
    "token ref neg": "root ::= !<[5]>*",
    "token ref name": "root ::= <think>",
    "token ref open": "root ::= <[5",
    "any": "root ::= .*",
    "dup rule": 'root ::= "a"\nroot ::= "b"',
    "long name": "root ::= " + "x" * 1000000 + "\n" + "x" * 1000000 + ' ::= "a"',
    "long str": 'root ::= "' + "a" * 5000000 + '"',
    "alts": "root ::= " + "|".join('"a"' for _ in range(200000)),
    "rep neg": 'root ::= "a"{-1}',
    "rep inv": 'root ::= "a"{5,2}',
    "rep ovf": 'root ::= "a"{99999999999999999999}',
    "nullable star": 'root ::= (("a"*)*)* "b"',
    "nullable deep": "root ::= " + "(" * 3000 + '"a"*' + ")*" * 3000,
    "nullable deep 300": "root ::= " + "(" * 300 + '"a"*' + ")*" * 300,
}
SCHEMAS = {
    "deep": '{"type":"array","items":' * 2000 + '{"type":"string"}' + "}" * 2000,
    "deep90": '{"type":"array","items":' * 90 + '{"type":"string"}' + "}" * 90,
    "minItems": '{"type":"array","items":{"type":"string"},"minItems":1000000000}',
    "maxItems": '{"type":"array","items":{"type":"string"},"maxItems":100000000}',
    "minLength": '{"type":"string","minLength":1000000000}',
    "maxLength": '{"type":"string","maxLength":1000000000}',
    "minLength m": '{"type":"string","minLength":1000000}',
    "pattern redos": '{"type":"string","pattern":"^(a+)+$"}',
    "pattern rep": '{"type":"string","pattern":"^a{1000000000}$"}',
    "pattern nested": '{"type":"string","pattern":"^((((a{99}){99}){99}){99})$"}',
    "pattern open": '{"type":"string","pattern":"^((((((("}',
    "ref self": '{"$ref":"#"}',
    "ref loop": '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}',
    "ref http": '{"$ref":"https://127.0.0.1:9/x.json"}',
    "ref file": '{"$ref":"file:///etc/passwd"}',
    "allOf": '{"allOf":[{"$ref":"#"}]}',
    "anyOf exp": '{"anyOf":['
    + ",".join('{"type":"string"}' for _ in range(50000))
    + "]}",
    "props": '{"type":"object","properties":{'
    + ",".join(f'"a{i}":{{"type":"string"}}' for i in range(3000))
    + "}}",
    "props opt 300": '{"type":"object","properties":{'
    + ",".join(f'"a{i}":{{"type":"string"}}' for i in range(300))
    + "}}",
    "enum big": '{"enum":[' + ",".join(str(i) for i in range(100000)) + "]}",
    "const deep": '{"const":' + "[" * 900 + "]" * 900 + "}",
    "int": '{"type":"integer","minimum":-1e308,"maximum":1e308}',
    "num": "[" * 100000,
    "bool": "true",
    "null": "null",
    "list": "[]",
    "name": '{"type":"object","properties":{"a\\u0000b\\n\\"\\\\":{"type":"string"}},"required":["a\\u0000b\\n\\"\\\\"]}',
    "huge int": '{"type":"string","minLength":' + "9" * 5000 + "}",
}

# Reads grammars as lines of JSON, follows each for some steps, and says how that went.
CHILD = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import random
from processes import peak_memory
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
    memory = peak_memory() >> 10
    print(json.dumps([name, checked - start, slowest, memory, said]), flush=True)
"""


def followed(cases: list[tuple[str, str, str]], steps: int) -> list[Any]:
    """What a child said of the cases: name, seconds to check, slowest step, MB, its refusal."""
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join((str(tests), str(tests / "support")))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(steps)],
        input="".join(json.dumps(case) + "\n" for case in cases),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases), (
        cases[len(answers)][0],
        done.returncode,
        done.stderr[-500:],
    )
    return answers


def check(answers: list[Any]) -> None:
    for name, seconds, slowest, memory, said in answers:
        assert seconds < 5, name
        assert slowest < 2, name
        assert memory < 512, name
        assert said.isprintable(), name
        assert len(said) < 600, name


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
    *(
        "array",
        "integer",
        "^a{3}$",
        "(a|b)*c{2,}",
        "\\d+",
        "date",
        "uuid",
        [],
        {},
        ["a"],
        [1, "a"],
    ),
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
    if keyword == "required":
        return chance.choice((["a"], ["a", "b", "c"], [[1]], [{}, "a"], "a", [None]))
    if keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        return [schema, random_schema(chance, depth + 1)]
    if keyword in ("properties", "patternProperties", "$defs"):
        return {"a": schema, "b": random_schema(chance, depth + 1)}
    return schema


def known_cases() -> list[tuple[str, str, str]]:
    """Names, kinds and texts."""
    cases = [(name, "grammar", text) for name, text in GRAMMARS.items()]
    return [*cases, *((name, "schema", text) for name, text in SCHEMAS.items())]


def random_cases(chance: random.Random, count: int) -> list[tuple[str, str, str]]:
    """``count`` grammars, then as many schemas."""
    cases = [(f"grammar {i}", "grammar", random_grammar(chance)) for i in range(count)]
    schemas = (json.dumps(random_schema(chance)) for _ in range(count))
    return [
        *cases,
        *((f"schema {i}", "schema", text) for i, text in enumerate(schemas)),
    ]


def run(seconds: float, seed: int) -> tuple[int, list[str]]:
    """How many were tried, and what was wrong."""
    end, chance, tried, wrong = time.monotonic() + seconds, random.Random(seed), 0, []
    cases = known_cases()
    while time.monotonic() < end:
        try:
            check(followed(cases, 25))
        except AssertionError as error:
            wrong.append(f"batch from {tried:,}: {error!s:.500}")
        tried += len(cases)
        cases = random_cases(chance, 50)
    return tried, wrong


def main() -> int:
    tried, wrong = run(float(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(f"seed {sys.argv[2]}: {tried:,} grammars and schemas\n")
    for problem in wrong:
        sys.stdout.write(f"{problem}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
