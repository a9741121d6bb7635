"""A constraint never fails open: what llguidance lets through is valid, what cannot be held is refused
by its name, and nothing that a stranger writes as a schema ends the process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from schema_walks import follows, walk

from ggext.errors import GgextError, UsageError
from ggext.runtime.constraint import json_grammar
from ggext.runtime.sampling import Sampling

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")


LONGER = int(os.environ.get("GGEXT_LONGER", "1"))
#: Name → schema, a value that is valid, one that is not.
HELD: dict[str, tuple[Any, Any, Any]] = {
    "true": (True, {"a": [1, None]}, ...),
    "empty": ({}, [1, "a"], ...),
    "type": ({"type": "boolean"}, True, 1),
    "types": ({"type": ["null", "string"]}, None, 1),
    "enum": ({"enum": [1, "a", None, [2]]}, [2], 2),
    "const": ({"const": {"a": [1, 2.5]}}, {"a": [1, 2.5]}, {"a": [1]}),
    "minimum": ({"type": "integer", "minimum": 7}, 7, 6),
    "maximum": ({"type": "integer", "maximum": -7}, -7, -6),
    "exclusiveMinimum": ({"type": "number", "exclusiveMinimum": 1.5}, 1.6, 1.5),
    "exclusiveMaximum": ({"type": "number", "exclusiveMaximum": 1.5}, 1.4, 1.5),
    "a range": ({"type": "number", "minimum": -0.25, "maximum": 1000}, 999.5, 1000.5),
    "multipleOf": ({"type": "integer", "multipleOf": 7, "minimum": 0}, 49, 50),
    "multipleOf a fraction": ({"type": "number", "multipleOf": 0.5}, 2.5, 2.3),
    "minLength": ({"type": "string", "minLength": 3}, "äöü", "äö"),
    "maxLength": ({"type": "string", "maxLength": 3}, "äöü", "abcd"),
    "lengths with escapes": (
        {"type": "string", "minLength": 1, "maxLength": 2},
        '"\\',
        '"\\\n',
    ),
    "pattern": ({"type": "string", "pattern": "^[a-c]{2,3}$"}, "abc", "abcd"),
    "pattern with \\d": (
        {"type": "string", "pattern": "^\\d{3}-\\d+$"},
        "123-4",
        "12-4",
    ),
    "pattern anywhere": ({"type": "string", "pattern": "b+"}, "abc", "ac"),
    "format date": ({"type": "string", "format": "date"}, "2024-02-29", "2023-02-29"),
    "format time": ({"type": "string", "format": "time"}, "23:59:59Z", "23:59:60Z"),
    "format date-time": (
        {"type": "string", "format": "date-time"},
        "2026-11-30T17:00:00+01:00",
        "2026-11-31T17:00:00Z",
    ),
    "format uuid": (
        {"type": "string", "format": "uuid"},
        "2eb8aa08-aa98-11ea-b4aa-73b441d16380",
        "2eb8-aa08-aa98-11ea-b4aa73b441d16380",
    ),
    "format ipv4": ({"type": "string", "format": "ipv4"}, "192.168.0.1", "256.0.0.1"),
    "format email": (
        {"type": "string", "format": "email"},
        "a.b@example.org",
        "a.example.org",
    ),
    "items": ({"type": "array", "items": {"type": "null"}}, [None, None], [1]),
    "prefixItems": (
        {
            "type": "array",
            "prefixItems": [{"const": 1}, {"type": "null"}],
            "items": False,
        },
        [1, None],
        [1, None, 2],
    ),
    "minItems": (
        {"type": "array", "items": {"type": "null"}, "minItems": 2},
        [None] * 2,
        [None],
    ),
    "maxItems": (
        {"type": "array", "items": {"type": "null"}, "maxItems": 2},
        [None],
        [None] * 3,
    ),
    "properties": (
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"const": 1}}},
        {"a": None, "b": 1},
        {"a": 1},
    ),
    "required": (
        {
            "type": "object",
            "properties": {"a": {"const": 1}, "b": {}},
            "required": ["a"],
        },
        {"a": 1},
        {"b": 1},
    ),
    "required without a property": (
        {"type": "object", "required": ["a"]},
        {"a": 1},
        {"b": 1},
    ),
    "additionalProperties": (
        {"type": "object", "additionalProperties": {"type": "null"}},
        {"x": None},
        {"x": 1},
    ),
    "patternProperties": (
        {
            "type": "object",
            "patternProperties": {"^a": {"const": 1}},
            "additionalProperties": False,
        },
        {"ab": 1},
        {"b": 1},
    ),
    "minProperties": (
        {"type": "object", "minProperties": 2, "additionalProperties": {"const": 1}},
        {"a": 1, "b": 1},
        {"a": 1},
    ),
    "maxProperties": (
        {"type": "object", "maxProperties": 1, "additionalProperties": {"const": 1}},
        {"a": 1},
        {"a": 1, "b": 1},
    ),
    "anyOf": ({"anyOf": [{"const": 1}, {"type": "null"}]}, None, 2),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, 5, "a"),
    "allOf": ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, 4, 6),
    "allOf of objects": (
        {
            "allOf": [
                {
                    "type": "object",
                    "properties": {"a": {"const": 1}},
                    "required": ["a"],
                },
                {
                    "type": "object",
                    "properties": {"b": {"const": 2}},
                    "required": ["b"],
                },
            ]
        },
        {"a": 1, "b": 2},
        {"a": 1},
    ),
    "$ref": (
        {
            "$defs": {"n": {"type": "null"}},
            "type": "array",
            "items": {"$ref": "#/$defs/n"},
        },
        [None],
        [1],
    ),
    "$ref to itself": (
        {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        },
        {"next": {"next": None}},
        {"next": 1},
    ),
    "annotations": (
        {"type": "null", "title": "t", "default": 3, "x-mine": 1, "$comment": "c"},
        None,
        3,
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_a_keyword_is_held(name: str) -> None:
    schema, valid, invalid = HELD[name]
    grammar = json_grammar(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for seed in range(10 * LONGER):
        value = json.loads(walk(grammar, seed))
        assert not [error.message for error in validator.iter_errors(value)]
    assert follows(grammar, json.dumps(valid, ensure_ascii=False))
    assert invalid is ... or not follows(
        grammar, json.dumps(invalid, ensure_ascii=False)
    )


@pytest.mark.parametrize(
    "keyword",
    [
        *(
            "not",
            "if",
            "then",
            "else",
            "contains",
            "minContains",
            "maxContains",
            "uniqueItems",
        ),
        *("propertyNames", "dependentRequired", "dependentSchemas", "dependencies"),
        *("unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$dynamicAnchor"),
        *("$recursiveRef", "divisibleBy", "extends", "disallow", "minimun"),
    ],
)
@pytest.mark.parametrize("place", ["top", "below"])
def test_a_keyword_that_is_not_held_is_refused_by_its_name(
    keyword: str, place: str
) -> None:
    schema: Any = {keyword: {}}
    if place == "below":
        schema = {"properties": {"a": {"anyOf": [{"items": schema}]}}}
    with pytest.raises(
        UsageError, match=f"keyword '{keyword[:3]}".replace("$", r"\$")
    ) as refused:
        json_grammar(schema)
    assert keyword in str(refused.value)


def test_the_answers_of_a_model_are_valid(demo_gguf: Path) -> None:
    """Sampled at a high temperature from a model that knows nothing of JSON."""
    pytest.importorskip("llama_cpp")
    from ggext.runtime.engine import Model, Session, SessionOptions

    names = (
        "a range",
        "lengths with escapes",
        "format date-time",
        "items",
        "$ref",
        "allOf",
        "enum",
    )
    with Model.open(demo_gguf) as model, Session(model, SessionOptions(256)) as session:
        for seed, name in enumerate(names):
            schema = HELD[name][0]
            session.evaluate(model.tokenize("Tom hides the map below."))
            sampling = Sampling(temperature=2, seed=seed, grammar=json_grammar(schema))
            answer = session.generate(sampling, 200)
            text = b"".join(map(model.token_to_piece, answer)).decode()
            if answer.finish == "eog":
                jsonschema.validate(json.loads(text), schema)
            else:  # a list without an end
                assert not follows(sampling.grammar or "", text)


def test_a_keyword_as_the_name_of_a_property_is_none() -> None:
    grammar = json_grammar({"type": "object", "properties": {"not": {"const": 1}}})
    assert follows(grammar, '{"not": 1}')


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("{", "not JSON"),
        ("[]", "a schema is an object"),
        ("null", "a schema is an object"),
        (False, "false describes nothing"),
        ('{"minimum": NaN}', "not a number of JSON"),
        ({"type": "nothing"}, "Invalid type"),
        ({"$ref": "https://example.com/x"}, "Default retriever"),
        ({"$ref": "file:///etc/passwd"}, "Default retriever"),
        ({"format": "idn-email"}, "Unknown format"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength"),
        ({"multipleOf": 0}, "multipleOf at # is 0"),
        ({"minItems": 10**9}, "minItems at # is 1000000000"),
        ({"maxLength": "9" * 50}, "maxLength at #"),
        ({"maximum": 10**400}, "maximum at #"),
        ({"enum": list(range(10_001))}, "enum at #"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "string", "pattern": "(a)\\1"}, "backreferences"),
        ({"pattern": "^a{1000000000}$"}, "pattern at #"),
        ({"pattern": "^((((a{99}){99}){99}){99})$"}, "pattern at #"),
        ({"patternProperties": {"a{20000}": True}}, "patternProperties at #"),
        ({"pattern": "^((((((("}, ""),
        ({"$ref": "#"}, ""),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, ""),
        (
            {
                "$ref": "#/$defs/a0",
                "$defs": {
                    f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}}
                    for i in range(300)
                },
            },
            "more than 200 schemas",
        ),
        ({"properties": {"a": {}}, "required": [[1]]}, "required"),
        ({"properties": {"a": {}}, "required": [{}, "a"]}, "required"),
        (
            {"properties": {f"a{i}": {} for i in range(3001)}},
            "more than 3,000 properties",
        ),
        (
            {
                "allOf": [
                    {"properties": {f"{j}{i}": {} for i in range(999)}} for j in "abcd"
                ]
            },
            "more than 3,000 properties",
        ),
        ('{"items":' * 200 + "{}" + "}" * 200, "nested more than"),
        ("[" * 100_000, "not JSON"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"a": {1, 2}}, "not JSON"),
        ({"a" * 500: 1}, "keyword"),
    ],
)
def test_a_schema_that_cannot_be_held_is_refused_in_one_line(
    schema: Any, why: str
) -> None:
    with pytest.raises(
        UsageError, match="the JSON schema cannot be made into a grammar"
    ) as said:
        json_grammar(schema)
    assert why in str(said.value)
    assert str(said.value).isprintable()
    assert len(str(said.value)) < 500


def test_an_object_gets_no_other_names_unless_another_schema_describes_it_too() -> None:
    closed = json_grammar({"type": "object", "properties": {"a": {"const": 1}}})
    assert not follows(closed, '{"a": 1, "b": 2}')
    opened = json_grammar(
        {
            "type": "object",
            "properties": {"a": {"const": 1}},
            "additionalProperties": True,
        }
    )
    assert follows(opened, '{"a": 1, "b": 2}')
    referred = {
        "$defs": {"a": {"properties": {"a": {"const": 1}}}},
        "$ref": "#/$defs/a",
        "properties": {"b": {"const": 2}},
        "required": ["b"],
    }
    assert follows(json_grammar(referred), '{"b": 2}')


SUITE = os.environ.get("GGEXT_SCHEMA_SUITE", "")
DRAFTS = {
    "draft4": ("http://json-schema.org/draft-04/schema#", "Draft4Validator"),
    "draft6": ("http://json-schema.org/draft-06/schema#", "Draft6Validator"),
    "draft7": ("http://json-schema.org/draft-07/schema#", "Draft7Validator"),
    "draft2019-09": (
        "https://json-schema.org/draft/2019-09/schema",
        "Draft201909Validator",
    ),
    "draft2020-12": (
        "https://json-schema.org/draft/2020-12/schema",
        "Draft202012Validator",
    ),
}


@pytest.mark.skipif(
    not SUITE, reason="GGEXT_SCHEMA_SUITE names no JSON-Schema-Test-Suite"
)
@pytest.mark.parametrize("draft", DRAFTS)
def test_the_public_suite_is_held_or_refused(draft: str) -> None:
    """GGEXT_SCHEMA_SUITE: the suite's folder; the source distribution of jsonschema has it (json/)."""
    uri, name = DRAFTS[draft]
    tests = Path(SUITE) / "tests" / draft
    held = refused = 0
    for file in sorted([*tests.glob("*.json"), *tests.glob("optional/format/*.json")]):
        for case in json.loads(file.read_text()):
            schema = case["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": uri, **schema}
            try:
                grammar = json_grammar(schema)
            except UsageError:
                refused += 1
                continue
            held += 1
            if isinstance(schema, dict) and schema.get("multipleOf") == 0.0001:
                continue  # jsonschema divides floats: 10.2244 is no multiple to it
            validator = getattr(jsonschema, name)(schema)
            for seed in range(10):
                value = json.loads(walk(grammar, seed))
                errors = [error.message for error in validator.iter_errors(value)]
                assert not errors, (file.name, case["description"], value)
            for test in case["tests"]:
                if not test["valid"]:
                    text = json.dumps(test["data"], ensure_ascii=False)
                    assert not follows(grammar, text), (file.name, test["description"])
    print(f"{draft}: {held} schemas held, {refused} refused")  # noqa: T201 - for docs
    assert held > 100


def test_every_refusal_is_ggexts() -> None:
    assert issubclass(UsageError, GgextError)
