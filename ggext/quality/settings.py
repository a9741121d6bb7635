"""What is to be measured: files, settings of each, lengths, tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ggext.errors import UsageError
from ggext.footprint.cache import KV_TYPES
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import effective_table
from ggext.gguf.shards import metadata_part
from ggext.quality.prompts import Form
from ggext.quality.tasks import DEPTHS, TASKS
from ggext.rope import methods
from ggext.rope.compare import compare
from ggext.rope.keys import stated_method
from ggext.rope.scaling import Method, RopeScaling
from ggext.runtime.memory.options import POLICIES, WhenFull
from ggext.runtime.scaled import scaling_overrides, unscaled_geometry

Protocol = Literal["llama.cpp", "yarn"]
_TRIED: tuple[Method, ...] = ("none", "linear", "ntk", "yarn")
_MOST_LENGTHS = 6
_SHORTEST = 64


@dataclass(frozen=True)
class EvalOptions:
    """What `evaluate` measures. Raises UsageError."""

    # Tokens; none: the contexts of the files, halved again and again down to the trained one.
    lengths: tuple[int, ...] = ()
    # See `ggext.quality.tasks.TASKS`; none: perplexity alone.
    tasks: tuple[str, ...] = TASKS[:1]
    # Texts for each task and length, or for each task and each of the `lengths`; None: as many as
    # the budget allows.
    trials: int | tuple[int, ...] | None = None
    # Needles of a text of the task "multikey", each of them asked for after one reading.
    needles: int = DEPTHS
    # Texts for each perplexity; None: as many as the budget allows.
    documents: int | None = None
    # Whether scaled files are read without their scaling too, for the price at a short context.
    price: bool = True
    # The user's own documents, for perplexity and between the needles.
    texts: tuple[Path, ...] = ()
    # Whether marks of the vocabulary that the documents spell, such as <|im_end|>, are those marks.
    marks: bool = False
    # The user's own questions, JSON lines, for the task "questions"; see `texts.read_questions`.
    questions: Path | None = None
    # Methods to compare without baking, such as "yarn:4" or "none".
    tries: tuple[str, ...] = ()
    # Types of the KV cache.
    kv_types: tuple[str, ...] = ("f16",)
    # What a full context does; other than "stop", texts may be longer than the context.
    when_full: tuple[WhenFull, ...] = ("stop",)
    # How the prompts are made.
    form: Form = "auto"
    # A further perplexity, by the definition of published figures.
    protocol: Protocol | None = None
    # Whether LongPPL's key tokens are looked for, which takes a second reading in short windows.
    key_tokens: bool = False
    # Whether every setting is compared with the first token by token: KL, top-1, Δp.
    divergence: bool = False
    # The same seed gives the same report.
    seed: int = 0
    # Seconds that it may take, where trials and documents are not given.
    budget: float = 600.0
    # Threads on the CPU; None: as a chat takes.
    threads: int | None = None
    # Layers on a GPU; None: as many as the library can.
    gpu_layers: int | None = None

    def __post_init__(self) -> None:
        _check_names("task", self.tasks, TASKS)
        _check_names("kv type", self.kv_types, tuple(KV_TYPES))
        _check_names("when full", self.when_full, POLICIES)
        _check_names("form", (self.form,), get_args(Form))
        if self.protocol is not None:
            _check_names("protocol", (self.protocol,), get_args(Protocol))
        for length in self.lengths:
            if not _SHORTEST <= length < 1 << 31:
                raise UsageError(
                    f"a length is {length}, but must be at least {_SHORTEST} tokens"
                )
        counts = self.trials if isinstance(self.trials, tuple) else (self.trials,)
        for name, given in (
            ("trials", counts),
            ("documents", (self.documents,)),
            ("needles", (self.needles,)),
        ):
            for value in given:
                if value is not None and value < 1:
                    raise UsageError(f"{name} is {value}, but must be at least 1")
        if isinstance(self.trials, tuple) and len(counts) != len(self.lengths):
            raise UsageError(
                f"trials has {len(counts)} numbers for {len(self.lengths)} lengths: give one for "
                "each, or a single one"
            )
        if not self.budget > 0:
            raise UsageError(
                f"the budget is {self.budget} seconds, but must be more than 0"
            )
        if ("questions" in self.tasks) != (self.questions is not None):
            raise UsageError("the task questions and a file of questions go together")
        for name in self.tries:
            tried_scaling(name, _SHORTEST)


def _check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(
                f"the {what} {name!r} is unknown; known are {', '.join(known)}"
            )
    if len(set(names)) < len(names):
        raise UsageError(f"a {what} is named twice: {', '.join(names)}")


def tried_scaling(name: str, context: int) -> RopeScaling:
    """``METHOD[:FACTOR]`` as a request; `context` is what "none" admits. Raises UsageError."""
    method, colon, factor = name.partition(":")
    if method not in _TRIED:
        raise UsageError(
            f"{name!r} is no method to try: name {', '.join(_TRIED)}, with a factor such as yarn:4"
        )
    if method == "none":
        if colon:
            raise UsageError(f"{name!r}: none takes no factor")
        return RopeScaling("none", context=context)
    try:
        value = float(factor)
    except ValueError:
        raise UsageError(f"{name!r} needs a factor, such as {method}:4") from None
    if not 1 < value < 1e6:
        raise UsageError(f"{name!r}: the factor must be more than 1")
    return RopeScaling(method, factor=value)


@dataclass(frozen=True)
class Setting:
    """A file in one setting: a row of every table."""

    # The file's header.
    header: GgufFile
    # Another scaling than the file's own; None: its own.
    scaling: RopeScaling | None
    # "as baked: yarn ×8", "none", "yarn:4".
    scaling_name: str
    kv_type: str
    when_full: WhenFull
    # Tokens that a text may have; None: no limit is known.
    limit: int | None

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def trained(self) -> int:
        """Tokens that the model was trained on."""
        return unscaled_geometry(self.header).trained_context

    @property
    def context(self) -> int:
        """Tokens that the file is made for."""
        return int(self.header.arch_keys()["context_length"])

    @property
    def key(self) -> str:
        """What tells it from every other, in a partial run."""
        parts = (
            self.path.name,
            self.header.size,
            self.scaling_name,
            self.kv_type,
            self.when_full,
        )
        return "|".join(map(str, parts))

    @property
    def name(self) -> str:
        """What tells it from the others, in words."""
        parts = [self.path.name, self.scaling_name]
        if self.kv_type != "f16":
            parts.append(f"KV {self.kv_type}")
        if self.when_full != "stop":
            parts.append(f"full: {self.when_full}")
        return ", ".join(parts)

    def unscaled(self) -> Setting:
        """The same with its scaling off."""
        scaling = RopeScaling("none", context=max(self.context, self.trained))
        return Setting(self.header, scaling, "none", self.kv_type, "stop", None)

    @property
    def is_unscaled(self) -> bool:
        return self.scaling_name == "none"


def settings(paths: Sequence[Path], options: EvalOptions) -> list[Setting]:
    """Every file in every setting. Raises UsageError, GgufError, RopeError."""
    if not paths:
        raise UsageError("there is no file to evaluate")
    result = []
    for path in paths:
        header = read_gguf(metadata_part(path))
        for scaling, name, limit in _scalings(header, options):
            for kv_type in options.kv_types:
                for policy in options.when_full:
                    reach = limit if policy == "stop" else None
                    result.append(
                        Setting(header, scaling, name, kv_type, policy, reach)
                    )
    keys = [setting.key for setting in result]
    if len(set(keys)) < len(keys):
        raise UsageError(
            "two of the files have the same name and size: they would be one row"
        )
    return result


def _scalings(
    header: GgufFile, options: EvalOptions
) -> Iterator[tuple[RopeScaling | None, str, int | None]]:
    """Scaling, its name and the longest text. A tried scaling that is the file's own takes its
    place, and its limit away."""
    own = own_name(header)
    made_for = int(header.arch_keys()["context_length"])
    longest = max([*options.lengths, made_for])
    tried = {name: tried_scaling(name, longest) for name in options.tries}
    for scaling in tried.values():
        scaling_overrides(header, scaling)  # raises before anything is measured
    if not any(_is_own(header, scaling) for scaling in tried.values()):
        yield None, own, made_for
    for name, scaling in tried.items():
        yield scaling, name, None


def _is_own(header: GgufFile, scaling: RopeScaling) -> bool:
    expected = methods.make_table(scaling, unscaled_geometry(header))
    return compare(expected, effective_table(header, by_ggext=True)).is_exact


def own_name(header: GgufFile) -> str:
    """The file's own scaling in a word: ``none``, or as it was baked."""
    if _is_own(
        header, RopeScaling("none", context=int(header.arch_keys()["context_length"]))
    ):
        return "none"
    method, factor = stated_method(header.arch_keys())
    if method in ("none", "longrope"):
        from ggext.gguf.rope import recipe_of

        recipe = recipe_of(header)
        if recipe is None:
            return (
                f"as baked: {'longrope' if method == 'longrope' else 'another table'}"
            )
        method_name = recipe.scaling.method
        factor = recipe.scaling.factor or 1.0
        return f"as baked: {method_name} ×{factor:g}"
    return f"as baked: {method} ×{factor:g}"


def lengths_for(chosen: Sequence[Setting], options: EvalOptions) -> tuple[int, ...]:
    """The lengths to measure, rising: the given ones, or the longest context halved down to the
    trained one. Raises UsageError where no setting reaches a given one."""
    if options.lengths:
        lengths = tuple(sorted(set(options.lengths)))
        for length in lengths:
            if not any(
                setting.limit is None or length <= setting.limit for setting in chosen
            ):
                setting = max(chosen, key=lambda s: s.limit or 0)
                raise UsageError(
                    f"a length of {length:,} is beyond the {setting.limit:,} tokens that "
                    f"{setting.path} is made for: take shorter ones, bake a longer context, or "
                    f"try another scaling on it (none, yarn:{_factor(length, setting):g})"
                )
        return lengths
    longest = max(_reach(setting) for setting in chosen)
    trained = min(setting.trained for setting in chosen)
    halvings = [longest]
    while (halvings[-1] > trained or len(halvings) < 3) and halvings[
        -1
    ] // 2 >= _SHORTEST:
        halvings.append(halvings[-1] // 2)
    if len(halvings) > _MOST_LENGTHS:
        halvings = [*halvings[: _MOST_LENGTHS - 1], halvings[-1]]
    return tuple(sorted(halvings))


def _factor(length: int, setting: Setting) -> float:
    return max(2.0, float(-(-length // setting.trained)))


def _reach(setting: Setting) -> int:
    if setting.when_full != "stop":
        return 2 * setting.context
    if setting.scaling is None:
        return setting.context
    return methods.extended_context(setting.scaling, unscaled_geometry(setting.header))
