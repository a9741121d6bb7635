"""Which scaling is baked: the one that is asked for, in full, or the model's own."""

from __future__ import annotations

from dataclasses import replace

from ggext.convert.sources import ModelSource
from ggext.errors import RopeError, UsageError
from ggext.rope import methods
from ggext.rope.published import published
from ggext.rope.recipe import CHECKPOINT, COMMAND_LINE
from ggext.rope.scaling import RopeScaling


def resolve_scaling(
    asked: RopeScaling | None,
    target_context: int | None,
    source: ModelSource,
    notes: list[str],
    *,
    keeps_own: bool,
) -> tuple[RopeScaling | None, str]:
    """The request in full, and who made it. ``None``: a GGUF file stays as it is, where
    ``keeps_own``.

    Raises ``RopeError`` and ``UsageError``."""
    if asked is None and target_context is not None:
        asked = RopeScaling("yarn")
    if asked is None and source.is_gguf:
        return (None, "") if keeps_own else (_own_scaling(source), COMMAND_LINE)
    if asked is None:
        if source.problem:
            raise RopeError(source.problem)
        return source.scaling, CHECKPOINT
    if asked.original_context is None and source.scaling is None:
        raise RopeError(
            f"{source.path} has frequency factors baked in by an unknown method (Llama 3 files "
            "do); a new scaling "
            "replaces them, so say the context that they started from: --original-context (8192 "
            "for Llama 3.1 and 3.2)"
        )
    own = source.scaling
    if source.problem:
        notes.append(f"the source's own scaling is replaced, not understood: {source.problem}")
    elif own is None or own.method != "none":
        words = "frequency factors" if own is None else f"{own.method} scaling by {own.factor:g}"
        notes.append(f"the source's own {words} is replaced, not added to")
    if asked.method == "none":
        return asked, COMMAND_LINE
    original = methods.original_context(asked, source.geometry)
    if target_context is not None:
        if asked.factor is not None:
            raise UsageError("a factor and --target-context exclude each other; give one")
        if target_context <= original:
            notes.append(
                f"the model reaches {target_context} tokens without scaling; none is baked"
            )
            return RopeScaling(), COMMAND_LINE
    original = _as_published(asked, source, original, notes)
    if target_context is not None:
        asked = replace(asked, factor=target_context / original, context=target_context)
    return replace(asked, original_context=original), COMMAND_LINE


def _as_published(asked: RopeScaling, source: ModelSource, original: int, notes: list[str]) -> int:
    """The context that a scaling starts from: the one that the model's authors extend, where they
    publish another than the model says and the request names none."""
    row = published(source.arch, original)
    if asked.original_context is not None or row is None or row.trained == original:
        return original
    notes.append(
        f"{row.name} says {original:,} tokens, and its authors extend it from {row.trained:,} "
        f"({row.source}): the scaling starts from there, as with --original-context {row.trained} "
        f"(--original-context {original} starts from what the model says)"
    )
    return row.trained


def _own_scaling(source: ModelSource) -> RopeScaling:
    """A GGUF file's scaling, to be written in another form."""
    if source.problem:
        raise RopeError(f"{source.path}: {source.problem}")
    if source.scaling is None:
        raise RopeError(
            f"{source.path} has frequency factors baked in by an unknown method, which are not "
            "written in another "
            "form; name the scaling and --original-context (Llama 3.1 and 3.2: --llama3 F "
            "--original-context 8192)"
        )
    context = source.fields[f"{source.arch}.context_length"].value
    if source.scaling.method == "none":
        return replace(source.scaling, context=context)
    return replace(
        source.scaling,
        context=context,
        original_context=methods.original_context(source.scaling, source.geometry),
    )
