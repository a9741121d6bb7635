"""What is asked of ``convert``, in full: the method, its factor, and the name of the output."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ggext.checkpoint.named import model_name
from ggext.checkpoint.stores import is_ollama_blob
from ggext.convert.model_source import ModelSource
from ggext.errors import RopeError, UsageError
from ggext.gguf.shards import model_stem
from ggext.rope import methods
from ggext.rope.known import extension_of
from ggext.rope.recipe import CHECKPOINT, PROGRAM
from ggext.rope.scaling import Method, RopeScaling

#: The largest factors that were published for these methods: YaRN's paper (Llama 2, 4k to 128k),
#: position interpolation's (LLaMA, 2k to 32k), Llama 3.2 (8k, by 32).
SHOWN_TO_WORK: dict[Method, float] = {"yarn": 32.0, "linear": 16.0, "llama3": 32.0}
_SCALING_IN_NAME = re.compile(
    r"-(?:yarn|linear|ntk|llama3|longrope)[0-9]+(?:\.[0-9]+)?(?=-|$)"
)


@dataclass(frozen=True)
class Request:
    """What is asked of a model's RoPE, in full."""

    # None: a GGUF file stays as it is.
    scaling: RopeScaling | None
    # Who makes the request, as the file will say.
    asked_by: str = ""
    # Sentences on what the user may not expect.
    notes: tuple[str, ...] = ()


def resolve_scaling(
    rope: RopeScaling | None,
    target_context: int | None,
    source: ModelSource,
    *,
    keeps_own: bool,
    asked_by: str = PROGRAM,
    attention_factor: float | None = None,
) -> Request:
    """The request in full. ``keeps_own``: a GGUF file for which nothing is asked stays as it is.
    ``attention_factor``: of the source's own scaling, where no other is asked for.
    ``asked_by``: who makes the request, where it is not the source itself.

    Raises ``RopeError`` and ``UsageError``."""
    if source.unrotated:
        _refuse_scaling(
            source, rope, target_context, attention_factor, keeps_own=keeps_own
        )
        return Request(None)
    if attention_factor is not None:
        if rope is not None or target_context is not None:
            raise UsageError(
                "attention_factor changes the model's own scaling, and another one is asked for; "
                "give it as that one's"
            )
        scaling, note = _with_gain(source, attention_factor)
        return Request(scaling, asked_by, (note,))
    if rope is None and target_context is not None:
        rope = RopeScaling("yarn")
    if rope is None and source.is_gguf:
        if keeps_own:
            return Request(None)
        return Request(_own_scaling(source), asked_by)
    if rope is None:
        if source.problem:
            raise RopeError(source.problem)
        return Request(source.scaling, CHECKPOINT)
    if rope.original_context is None and source.scaling is None:
        raise RopeError(
            f"{source.path} has frequency factors baked in by an unknown method (Llama 3 files "
            "do); a new scaling replaces them, so say the context that they started from: "
            "original_context (8192 for Llama 3.1 and 3.2)"
        )
    notes: list[str] = []
    if rope.method != "none":
        rope, notes = _with_factor(rope, target_context, source)
    return Request(rope, asked_by, (*notes, *_replaced(source, rope)))


def _refuse_scaling(
    source: ModelSource,
    rope: RopeScaling | None,
    target_context: int | None,
    attention_factor: float | None,
    *,
    keeps_own: bool,
) -> None:
    """Raises ``RopeError`` for what concerns RoPE, of a model that has none."""
    words = []
    if rope is not None and rope.method != "none":
        words.append(f"{rope.method} scaling")
    if target_context is not None and target_context > source.geometry.trained_context:
        words.append(f"a target context of {target_context}")
    if attention_factor is not None:
        words.append(f"an attention factor of {attention_factor:g}")
    if not keeps_own:
        words.append("an encoding")
    if words:
        raise RopeError(
            f"{source.path}: {' and '.join(words)} cannot be given, because "
            f"{source.unrotated}; convert it without"
        )


def _with_gain(source: ModelSource, gain: float) -> tuple[RopeScaling, str]:
    """The source's own scaling with another gain on cos and sin, and a note on it."""
    if source.is_gguf or source.scaling is None:
        own = _own_scaling(source)
    elif source.problem:
        raise RopeError(source.problem)
    else:
        own = source.scaling
    words = (
        "no scaling"
        if own.method == "none"
        else f"its {own.method} scaling by {own.factor:g}"
    )
    note = f"the source keeps {words}, with the attention factor {gain:g} in place of its own"
    return replace(own, attention_factor=gain), note


def _with_factor(
    rope: RopeScaling, target: int | None, source: ModelSource
) -> tuple[RopeScaling, list[str]]:
    """No scaling where the model reaches the context without one; and notes."""
    original = methods.original_context(rope, source.geometry)
    if target is not None:
        if rope.factor is not None:
            raise UsageError("a factor and target_context exclude each other; give one")
        if target <= original:
            note = (
                f"the model was trained on {original:,} tokens and reaches {target:,} without a "
                "scaling"
            )
            return RopeScaling(), [note]
    original, notes = _as_published(rope, source, original)
    if target is not None:
        rope = replace(rope, factor=target / original, context=target)
    if rope.factor == 1.0 and not rope.given().keys() - {
        "factor",
        "original_context",
    }:
        return RopeScaling(), [*notes, "a factor of 1 scales nothing"]
    most = SHOWN_TO_WORK.get(rope.method)
    if most is not None and rope.factor is not None and rope.factor > most:
        notes.append(
            f"{rope.method} was never shown to work beyond a factor of {most:g}, and this is "
            f"{rope.factor:g}: try the result before you trust it"
        )
    return replace(rope, original_context=original), notes


def _as_published(
    rope: RopeScaling, source: ModelSource, original: int
) -> tuple[int, list[str]]:
    """The context that a scaling starts from: the one that the model's authors extend, where they
    publish another than the model says and the request names none. A note says so."""
    row = extension_of(source.arch, source.geometry.base, original)
    if rope.original_context is not None or row is None or row.extension is None:
        return original, []
    trained = row.extension.original_context
    if trained is None or trained == original:
        return original, []
    note = (
        f"{row.name} says {original:,} tokens, and its authors extend it from {trained:,} "
        f"({row.source}): the scaling starts from there, as with original_context={trained} "
        f"(original_context={original} starts from what the model says)"
    )
    return trained, [note]


def _replaced(source: ModelSource, rope: RopeScaling) -> list[str]:
    """A note on the source's own scaling, where it has one."""
    own = source.scaling
    if source.problem:
        return [
            f"the source's own scaling is replaced, not understood: {source.problem}"
        ]
    if own is not None and own.method == "none":
        return []
    words = (
        "frequency factors"
        if own is None
        else f"{own.method} scaling by {own.factor:g}"
    )
    done = "taken out" if rope.method == "none" else "replaced, not added to"
    return [f"the source's own {words} is {done}"]


def _own_scaling(source: ModelSource) -> RopeScaling:
    """A GGUF file's scaling, to be written in another form."""
    if source.problem:
        raise RopeError(f"{source.path}: {source.problem}")
    if source.scaling is None:
        raise RopeError(
            f"{source.path} has frequency factors baked in by an unknown method, which are not "
            "written in another form; name the scaling and original_context (Llama 3.1 and 3.2: "
            "RopeScaling('llama3', factor=F) and original_context=8192)"
        )
    context = source.fields[f"{source.arch}.context_length"].value
    if source.scaling.method == "none":
        return replace(source.scaling, context=context)
    return replace(
        source.scaling,
        context=context,
        original_context=methods.original_context(source.scaling, source.geometry),
    )


def default_name(
    source: ModelSource, scaling: RopeScaling | None, requested: str
) -> str:
    """The output's name where none is given: the model's, the scaling that the file has, and the
    type that was asked for. ``requested``: as ``--type``."""
    name = model_stem(source.path) if source.is_gguf else model_name(source.path)
    if is_ollama_blob(source.path):  # the file is named by its checksum
        title = source.fields.get(
            "general.name", source.fields["general.architecture"]
        ).value
        name = "-".join(re.findall(r"[\w.]+", str(title).lower()))[:80] or "model"
    if (
        scaling is not None and source.is_gguf
    ):  # what the file had before is not in it any more
        name = _SCALING_IN_NAME.sub("", name) or name
    if scaling is not None and scaling.method != "none":
        name += f"-{scaling.method}{scaling.factor:g}"
    return f"{name}-{requested}.gguf" if requested != "auto" else f"{name}.gguf"
