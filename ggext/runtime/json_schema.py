"""JSON schemas as constraints: what llguidance holds is let through, all else is refused by its
name before anything is compiled."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from ggext.errors import UsageError
from ggext.runtime.chains import longest_chain

MAX_TEXT = 1 << 20
MAX_DEPTH = 100
MAX_VALUES = 20_000
MAX_ALTERNATIVES = 10_000
MAX_CHAIN = (
    200  # schemas inside one another, by $ref too: llguidance follows them by recursion
)
MAX_PATTERN = 2_000
MAX_OPTIONAL = (
    3_000  # properties that may be missing: llguidance needs their square in time
)
MAX_COUNT = 10_000  # items, properties, characters
#: Beyond it many readers of JSON take a number for its neighbour.
_MAX_INTEGER = 2**53

# Keywords that hold a schema, a list of schemas, schemas by name.
_SCHEMA = {"additionalProperties", "additionalItems", "items"}
_SCHEMAS = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
_NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions"}
_COUNTS = {
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_REFERENCES = {"$ref", "$id", "id", "$anchor", "$schema"}
_OTHERS = {"const", "enum", "format", "pattern", "required", "type"}
_HELD = _SCHEMA | _SCHEMAS | _NAMED_SCHEMAS | _COUNTS | _NUMBERS | _REFERENCES | _OTHERS
# These say something about a value and ask nothing of it.
_ANNOTATIONS = {
    *(
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
    ),
    *("readOnly", "writeOnly", "contentEncoding", "contentMediaType", "contentSchema"),
    *("discriminator", "externalDocs", "xml", "nullable"),
}

_REPETITION = re.compile(r"(\)?)\{(\d{1,20})(?:,(\d{0,20}))?\}")
# RFC 3339, without leap seconds (which minutes have one is not known before) and before year 1000.
_LEAP_YEAR = (
    r"(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
)
_DATE = (
    r"(?:[1-9]\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
# Formats that llguidance knows less exactly than these patterns.
_PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
}


def read(schema: str | Mapping[str, Any] | bool) -> str:
    """The schema as JSON, within bounds and of keywords that can be held. Raises UsageError."""
    text = schema if isinstance(schema, str) else _dumped(schema)
    if len(text) > MAX_TEXT:
        _refuse(f"it has {len(text)} characters, more than {MAX_TEXT}")
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(f"it is not JSON: {_line(error)}")
    if not isinstance(document, dict | bool):
        _refuse("a schema is an object, or true")
    if document is False:
        _refuse("false describes nothing")
    _check_size(document)
    for part, where in _schemas(document):
        _check(part, where)
    if _optional(document) > MAX_OPTIONAL:
        _refuse(
            f"its objects have more than {MAX_OPTIONAL:,} properties that are not required"
        )
    if _depth(document) > MAX_CHAIN:
        _refuse(f"more than {MAX_CHAIN} schemas stand inside one another, by $ref too")
    document = {} if document is True else document
    return json.dumps(document)


def prepared(schema: str) -> str:
    """A schema that was `read` in the words that llguidance knows.

    Where the schema leaves it open, a model is not invited to go on without end: an object with
    named properties gets no others, an integer no more than 16 digits. What follows is valid all
    the same.
    """
    document = json.loads(schema)
    parts = [part for part, _ in _schemas(document)]
    is_closed = not any(map(_combines, parts))
    for part in parts:
        for keyword in _COUNTS & part.keys():
            part[keyword] = int(part[keyword])
        pattern = _PATTERNS.get(part.get("format", ""))
        if pattern is not None:
            del part["format"]
            part["allOf"] = [*part.get("allOf", []), {"pattern": pattern}]
        if part.get("type") == "integer":
            _bound(part)
        if is_closed and _names_all_properties(part):
            part["additionalProperties"] = False
    return json.dumps(document)


def _combines(schema: dict[str, Any]) -> bool:
    """Whether another schema describes the same value: then none may forbid the other's names."""
    beside = schema.keys() - _ANNOTATIONS - {"$defs", "definitions", "$id", "$schema"}
    return "allOf" in schema or bool(
        beside & {"$ref", "anyOf", "oneOf"} and len(beside) > 1
    )


def _names_all_properties(schema: dict[str, Any]) -> bool:
    named = schema.get("properties")
    if (
        not isinstance(named, dict)
        or {"additionalProperties", "patternProperties"} & schema.keys()
    ):
        return False
    required = schema.get("required", [])
    least = schema.get("minProperties", 0)
    if not isinstance(required, list) or not all(
        isinstance(name, str) for name in required
    ):
        return False  # llguidance says why
    return {*required} <= named.keys() and least <= len(named)


def _bound(schema: dict[str, Any]) -> None:
    """Puts the limits that are missing where no reader of JSON rounds an integer."""
    low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    if low == -math.inf and high > -_MAX_INTEGER:
        schema["minimum"] = -_MAX_INTEGER + 1
    if high == math.inf and low < _MAX_INTEGER:
        schema["maximum"] = _MAX_INTEGER - 1


def _dumped(schema: object) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        _refuse(f"it is not JSON: {_line(error)}")


def _check_size(document: Any) -> None:
    """Depth and number of values, without recursion."""
    count = 0
    level = [document]
    for _ in range(MAX_DEPTH):
        count += len(level)
        if count > MAX_VALUES:
            _refuse(f"it has more than {MAX_VALUES:,} values")
        level = [part for value in level for part in _parts(value)]
        if not level:
            return
    _refuse(f"it is nested more than {MAX_DEPTH} deep")


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _schemas(document: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every schema in the document, and where it stands, as a JSON pointer."""
    waiting = [(document, "#")]
    while waiting:
        schema, where = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield schema, where
        for keyword, value in schema.items():
            inside = f"{where}/{keyword}"
            if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
                waiting += [(part, f"{inside}/{name}") for name, part in value.items()]
            elif keyword in _SCHEMAS and isinstance(value, list):
                waiting += [
                    (part, f"{inside}/{number}") for number, part in enumerate(value)
                ]
            elif keyword in _SCHEMA:
                waiting.append((value, inside))


def _optional(document: Any) -> float:
    """Properties that may be missing, of the one object that costs as much as all of them; where
    schemas are combined, all may be of one."""
    parts = [part for part, _ in _schemas(document)]
    counts = []
    for part in parts:
        named = part.get("properties")
        required = part.get("required")
        if isinstance(named, dict):
            counts.append(
                len(named) - (len(required) if isinstance(required, list) else 0)
            )
    counts = [max(0, count) for count in counts]
    return float(sum(counts)) if any(map(_combines, parts)) else math.hypot(*counts)


def _depth(document: Any) -> int:
    """A bound on how many schemas stand inside one another, each $ref followed once."""
    places = {where: part for part, where in _schemas(document)}
    references = {
        where: str(part["$ref"]) for where, part in places.items() if "$ref" in part
    }
    targets = {"#", *references.values()}
    leads_to: dict[str, set[str]] = {target: set() for target in targets}
    depths = dict.fromkeys(targets, 1)
    for place in places:
        steps = place.split("/")
        for count in range(1, len(steps) + 1):
            above = "/".join(steps[:count])
            if above in targets:
                depths[above] = max(depths[above], len(steps) - count + 1)
                leads_to[above] |= {references[place]} if place in references else set()
    elsewhere = targets - places.keys()  # by $id or $anchor
    for target in elsewhere:  # they may lead anywhere
        leads_to[target] = targets
    return longest_chain(leads_to, depths)


def _check(schema: dict[str, Any], where: str) -> None:
    for keyword, value in schema.items():
        if keyword not in _HELD | _ANNOTATIONS and not keyword.startswith("x-"):
            _refuse(f"the keyword {keyword!r:.80} at {where:.200} cannot be held")
        description = f"{keyword} at {where:.200} is {json.dumps(value):.60}"
        if keyword in _COUNTS and not _is_count(value):
            _refuse(f"{description}, not a whole number from 0 to {MAX_COUNT:,}")
        if keyword in _NUMBERS and not _is_number(value):
            _refuse(f"{description}, not a number that can be held")
        if keyword == "multipleOf" and value <= 0:
            _refuse(f"{description}, not above 0")
        is_list = keyword in _SCHEMAS | {"enum"} and isinstance(value, list)
        if is_list and len(value) > MAX_ALTERNATIVES:
            _refuse(
                f"{keyword} at {where:.200} has more than {MAX_ALTERNATIVES:,} members"
            )
        if keyword == "pattern":
            _check_pattern(value, description)
        if keyword == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                _check_pattern(pattern, f"{keyword} at {where:.200} has {pattern:.60}")
        if keyword == "format" and not isinstance(value, str):
            _refuse(f"{description}, not the name of a format")


def _check_pattern(pattern: Any, description: str) -> None:
    """Bounds its length, and how often what stands inside repetitions is repeated."""
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        _refuse(f"{description}, not a text of up to {MAX_PATTERN:,} characters")
    together = 1
    longest = 1
    for match in _REPETITION.finditer(pattern):
        times = max(int(match[2]), int(match[3] or 0), 1)
        if match[1]:  # of a group, which may be repeated inside
            together *= times
        else:
            longest = max(longest, times)
    if together * longest > MAX_COUNT:
        _refuse(f"{description}, which repeats more than {MAX_COUNT:,} times")


def _is_count(value: Any) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (
        abs(value) <= _MAX_INTEGER if isinstance(value, int) else math.isfinite(value)
    )


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words[:200]


def _refuse(why: str) -> NoReturn:
    raise UsageError(f"the JSON schema cannot be made into a grammar: {why}")
