"""Model families: one short module each, named after its ``model_type``; a file here is a family
that is known.

Installed as ``ggext.converters``; import it under that name only.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ggext.checkpoint.files import quote
from ggext.errors import CheckpointError

if TYPE_CHECKING:
    from ggext.converters.base import Family

    from ggext.checkpoint.config import Config


_LONG_NAME = 64
#: Ends of the names in ``architectures`` of what has another head than a language model's.
_OTHER_HEADS = {
    "ForSequenceClassification": "a classifier",
    "ForTokenClassification": "a classifier of tokens",
    "ForMultipleChoice": "a classifier",
    "ForQuestionAnswering": "a model that marks answers in a text",
    "ForRewardModel": "a reward model",
    "RewardModel": "a reward model",
    "ForScore": "a reward model",
    "ForMaskedLM": "a model that fills gaps",
}

_GEMMA3N = (
    "llama.cpp's gemma3n takes the standard deviation of its sparse layers over n − 1 values where "
    "the model has n, and their number and share for granted"
)
#: ``model_type`` → why llama.cpp cannot compute what such a model does.
REFUSED = {
    "gemma3n": _GEMMA3N,
    "gemma3n_text": _GEMMA3N,
    "gptj": "llama.cpp has the name of this architecture and no loader for it",
    "phimoe": (
        "llama.cpp's phimoe has RMS norms where the model has layer norms, and chooses experts by "
        "a softmax where the model has its sparse mixer"
    ),
}


@cache
def known_families() -> tuple[str, ...]:
    """The ``model_type`` of every family that is converted, sorted."""
    return tuple(
        sorted(
            module.name for module in iter_modules(__path__) if module.name != "base"
        )
    )


def family_of(config: Config) -> Family:
    """The converter of a checkpoint. Raises ``CheckpointError`` naming families that are near."""
    model_type = config.string("model_type")
    if model_type in REFUSED:
        raise CheckpointError(
            f"{config.source}: model_type {quote(model_type)} is not converted: "
            f"{REFUSED[model_type]}; run it in the library that its authors name"
        )
    if model_type not in known_families():
        raise CheckpointError(
            f"{config.source}: model_type {quote(model_type)} is not a family that ggext converts; "
            "--via-llama-cpp FOLDER runs llama.cpp's own converter from its source; "
            f"{_near(model_type)}"
        )
    _check_is_language_model(config)
    module = import_module(f"ggext.converters.{model_type}")
    family: Family = module.FAMILY.of(config)
    return family


def _near(model_type: str) -> str:
    """The families whose names look like one that is not known, or how many there are."""
    known = known_families()
    near = get_close_matches(model_type[:_LONG_NAME], known, n=5)
    if near:
        return f"near: {', '.join(near)}"
    return f"docs/families.md lists the {len(known)} that are"


def _check_is_language_model(config: Config) -> None:
    """Raises ``CheckpointError`` where ``architectures`` names a class with another head."""
    named = config.values.get("architectures")
    for name in named if isinstance(named, list) else []:
        ends = (
            end for end in _OTHER_HEADS if isinstance(name, str) and name.endswith(end)
        )
        head = next(ends, None)
        if head is not None:
            raise CheckpointError(
                f"{config.source}: architectures names {quote(name)}, {_OTHER_HEADS[head]} and not "
                "a language model: its head is not converted; for the language model in it, set "
                f"architectures to {quote(name.removesuffix(head) + 'ForCausalLM')}"
            )
