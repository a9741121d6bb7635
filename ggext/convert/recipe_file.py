"""A request as a TOML file: what ``ggext convert`` was asked for, to be published and repeated.

    format = 1
    encoding = "folded"
    target_context = 131072

    [rope]
    method = "yarn"
    original_context = 32768
    attention_factor = 1.1

``[rope]`` has the parameters of ``RopeScaling`` under their own names. What is unknown, or of the
wrong type, is an error: a recipe that is read differently from how it was meant is worse than none.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from ggext.errors import RopeError, UsageError
from ggext.gguf.plain_files import read_plain
from ggext.gguf.writer import check_output, whole_file
from ggext.rope import methods
from ggext.rope.encoding import ENCODINGS, EncodingName
from ggext.rope.scaling import Method, RopeScaling

_FORMAT = 1
_MAX_BYTES = 1 << 20
_MAX_PARTS = 30
_INTEGERS = ("original_context", "context")
_LISTS = ("short_factors", "long_factors")
_VALUES_A_LINE = 8


@dataclass(frozen=True)
class Request:
    """What a recipe file asks for."""

    rope: RopeScaling
    # Tokens, in place of a factor.
    target_context: int | None = None
    # None: the simplest exact one.
    encoding: EncodingName | None = None
    # As `convert --type` takes it.
    type: str = "auto"
    # As `convert --tensor-type` takes them.
    tensor_types: tuple[str, ...] = ()


def read_request(path: Path) -> Request:
    """Raises ``RopeError`` naming the file, the key and what would be accepted."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RopeError(
                f"{path} has more than {_MAX_BYTES:,} bytes; a recipe is a short TOML file"
            )
        text = read_plain(path, _MAX_BYTES).decode("utf-8")
        _check_keys(text)
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise RopeError(
            f"{path} does not exist; name a scaling too, for example "
            "rope=RopeScaling('yarn', factor=4), to write it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RopeError(
            f"{path} is not a TOML file that can be read: {str(error).splitlines()[0]}"
        ) from None
    try:
        return _request(values)
    except RopeError as error:
        raise RopeError(f"{path}: {error}") from None


def _check_keys(text: str) -> None:
    """Raises ValueError for a key of many parts, which cost tomllib their square:
    minutes for a file of 200 KB."""
    for part in re.split(r"[\n,={}\[\]]", text.replace(" ", "").replace("\t", "")):
        if part.count(".") > _MAX_PARTS:
            raise ValueError(f"a key has more than {_MAX_PARTS} parts")


def _request(values: dict[str, Any]) -> Request:
    if values.get("format") != _FORMAT:
        raise RopeError(
            f"format is {values.get('format')!r}; this version reads {_FORMAT}"
        )
    _refuse_unknown(
        values,
        {"format", "rope", "target_context", "encoding", "type", "tensor_types"},
        "the recipe",
    )
    rope = values.get("rope")
    if not isinstance(rope, dict):
        raise RopeError("the table [rope] is missing; it names the method")
    target = values.get("target_context")
    encoding = values.get("encoding")
    kind = values.get("type", "auto")
    if target is not None and (type(target) is not int or target < 1):
        raise RopeError(
            f"target_context is {target!r}; it must be a whole number of tokens"
        )
    if encoding is not None and encoding not in ENCODINGS:
        raise RopeError(f"encoding is {encoding!r}; known: {', '.join(ENCODINGS)}")
    if not isinstance(kind, str):
        raise RopeError(f"type is {kind!r}; it must be a string such as q8_0")
    types = values.get("tensor_types", [])
    if not isinstance(types, list) or not all(isinstance(item, str) for item in types):
        raise RopeError(
            f"tensor_types is {types!r}; it must be a list of strings such as output=f16"
        )
    scaling = _scaling(rope)
    if target is not None and scaling.factor is not None:
        raise RopeError("target_context and a factor exclude each other; keep one")
    known = (
        replace(scaling, factor=1.0)
        if target is not None and scaling.method != "none"
        else scaling
    )
    methods.check(known)
    return Request(scaling, target, encoding, kind, tuple(types))


def _scaling(values: dict[str, Any]) -> RopeScaling:
    if values.get("method") not in get_args(Method):
        raise RopeError(
            f"method is {values.get('method')!r}; known: {', '.join(get_args(Method))}"
        )
    _refuse_unknown(values, set(RopeScaling.__dataclass_fields__), "[rope]")
    try:
        return RopeScaling(**{key: _typed(key, value) for key, value in values.items()})
    except UsageError as error:
        raise RopeError(str(error)) from None


def _typed(key: str, value: Any) -> Any:
    if key in _INTEGERS and type(value) is not int:
        raise RopeError(f"{key} is {value!r}; it must be a whole number of tokens")
    if key == "truncate" and not isinstance(value, bool):
        raise RopeError(f"{key} is {value!r}; it must be true or false")
    if key in _LISTS:
        if not isinstance(value, list):
            raise RopeError(f"{key} must be a list of numbers")
        return tuple(value)
    return value


def _refuse_unknown(values: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise RopeError(
            f"{where} has the unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )


def write_request(path: Path, request: Request, force: bool = False) -> None:
    """Raises ``OutputError``; a file that exists is replaced only with ``force``."""
    check_output(path, force)
    data = to_toml(request).encode("utf-8")
    with whole_file(path, len(data)) as file:
        file.write(data)


def to_toml(request: Request) -> str:
    top: dict[str, Any] = {
        "format": _FORMAT,
        "target_context": request.target_context,
        "encoding": request.encoding,
    }
    top["type"] = None if request.type == "auto" else request.type
    top["tensor_types"] = request.tensor_types or None
    rope = {"method": request.rope.method, **request.rope.given()}
    lines = ["# ggext convert MODEL OUT --recipe THIS_FILE"]
    lines += [
        f"{key} = {_value(value)}" for key, value in top.items() if value is not None
    ]
    lines += [
        "",
        "[rope]",
        *(f"{key} = {_value(value)}" for key, value in rope.items()),
    ]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, tuple):
        texts = [_value(v) for v in value]
        rows = [
            ", ".join(texts[i : i + _VALUES_A_LINE])
            for i in range(0, len(texts), _VALUES_A_LINE)
        ]
        return "[\n    " + ",\n    ".join(rows) + ",\n]"
    return repr(value)
