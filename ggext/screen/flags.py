"""What a library says of its parameters, in the flags of the command line.

Library code names parameters as a program writes them: ``encoding='keys'``, ``force=True``,
``original_context``. Whoever typed a command gets ``--encoding keys``, ``--force`` and
``--original-context``.
"""

from __future__ import annotations

import re

#: Parameters that a message names with a value: ``encoding='keys'``.
_ASSIGNED = {
    "context": "--context",
    "encoding": "--encoding",
    "force": "--force",
    "imatrix": "--imatrix",
    "in_place": "--in-place",
    "original_context": "--original-context",
    "reference": "--reference",
    "revision": "--revision",
    "rope": "--rope",
    "split": "--split",
    "target_context": "--target-context",
    "text": "--text",
    "tokens": "--tokens",
    "tolerance": "--tolerance",
    "type": "--type",
    "when_full": "--when-full",
}
#: Parameters that a message names alone; no English word, and no key of a file, is spelled so.
_ALONE = {
    "in_place": "--in-place",
    "original_context": "--original-context",
    "target_context": "--target-context",
    "tensor_types": "--tensor-type",
}
_SCALING = re.compile(r"RopeScaling\('(\w+)'(?:, factor=(\w+))?\)")
_VALUE = re.compile(rf"(?<![\w/.-])({'|'.join(_ASSIGNED)})=('[^']*'|…|[\w.,/~-]*\w)")
_NAME = re.compile(rf"(?<![\w/.\\-])({'|'.join(_ALONE)})(?![\w/\\=-]|\.\w)")


def in_flags(message: str) -> str:
    """The message with flags in place of parameters.

    >>> in_flags("choose encoding='keys', or rope=RopeScaling('yarn', factor=4); force=True")
    'choose --encoding keys, or --yarn 4; --force'
    """
    message = _SCALING.sub(_scaling, message).replace("rope=--", "--")
    return _NAME.sub(lambda name: _ALONE[name[1]], _VALUE.sub(_flag, message))


def _scaling(match: re.Match[str]) -> str:
    if match[1] == "none":
        return "--rope none"
    return f"--{match[1]} {match[2]}" if match[2] else f"--{match[1]}"


def _flag(match: re.Match[str]) -> str:
    name = match[1]
    value = match[2].strip("'")
    return _ASSIGNED[name] if value in ("True", "…") else f"{_ASSIGNED[name]} {value}"
