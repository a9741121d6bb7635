"""What a family of models must say, and the tensor transforms that families share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from ggext.errors import CheckpointError
from ggext.rope.capabilities import UNROTATED, capability_of
from ggext.rope.config import read_replaceable_rope
from ggext.rope.config_reader import CheckpointRope
from ggext.rope.families import FULL, SLIDING, text_part
from ggext.rope.scaling import RopeGeometry, RopeScaling

if TYPE_CHECKING:
    import numpy as np

    from ggext.checkpoint.config import Config

    RowNumbers = np.ndarray[Any, np.dtype[np.intp]]
    RowOrder = Callable[[], RowNumbers]


@dataclass(frozen=True)
class TensorRule:
    """Tensors of the checkpoint and the one that they become.

    The changes of the values happen in the order of the fields.
    """

    # Their names; several are stacked in a new first dimension.
    sources: tuple[str, ...]
    # Of each of them, in PyTorch order, as the configuration implies it.
    shape: tuple[int, ...]
    # The GGUF name; None for what the `gguf` package calls it.
    target: str | None = None
    # Swap the last two dimensions.
    transposed: bool = False
    # The shape that the values are then read in: the same number of values.
    view: tuple[int, ...] | None = None
    # For each written row the row that it is; where these are a part of them, `written` says the
    # shape. All dimensions but the last are taken together; of a one-dimensional tensor these are
    # its values.
    rows: RowOrder | None = None
    # The same within each row.
    columns: RowOrder | None = None
    # The shape to write, where it is not that of what was read.
    written: tuple[int, ...] | None = None
    # What each written row is multiplied by, or all of them, in float64; rounded to the type that
    # the source has.
    scale: float | Callable[[], np.ndarray[Any, np.dtype[np.float64]]] = 1.0
    # Added to every value.
    plus: float = 0.0
    # In place of that: takes an array's values, in float32, and gives those to write.
    computed: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None
    # What takes ``computed`` back, for an export; None where the values are not to be had from it.
    undone: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None
    # In place of `transposed`, `view` and `rows`: a function of the source's array, whose result
    # has the shape `written`.
    arranged: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None
    # The tensors of the exponents, one of each source, where these are MXFP4: bytes of two values
    # in shape (…, blocks, 16), `arranged` being applied to both; or without that (rows, bytes).
    scales: tuple[str, ...] = ()
    # The values are whole numbers from 0 to below this; 0: they are none.
    below: int = 0
    # Whether it may be absent.
    optional: bool = False
    # Not written, for this reason, which is reported where the tensor is present.
    unless: str = ""
    # The rule of another form in which checkpoints have the same, by other names or of another
    # shape, taken where that form alone is there. The target is this one's.
    instead: TensorRule | None = None
    # The end of the message about a source that is not there.
    hint: str = ""

    def row_scale(self, rows: int) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """``scale``, of each of the ``rows`` that are written; None where nothing is multiplied."""
        if self.scale == 1.0:
            return None
        if not isinstance(self.scale, float):
            return self.scale()
        import numpy as np

        return np.full(rows, self.scale)


class Family:
    """A family of models. Subclasses state `arch` and `tensors`, and refuse in `check` what their
    architecture in llama.cpp would compute otherwise."""

    # llama.cpp's name of the architecture.
    arch: str
    # Those that models of other sizes or kinds are converted to.
    further_archs: tuple[str, ...] = ()
    # What transformers' class of the `model_type` takes where a config.json is silent (null is
    # not), of what no tensor's shape would give away.
    defaults: ClassVar[Mapping[str, Any]] = {}
    # Name of a key here → the one that the family's config.json has for it.
    attribute_map: ClassVar[Mapping[str, str]] = {}
    # The module of the embedding.
    embedding = "model.embed_tokens"
    # The module of the output matrix.
    head = "lm_head"
    # Whether the architecture reads an output matrix that is not the embedding.
    has_output = True
    # What transformers' class of the whole model takes for tie_word_embeddings, where that and not
    # `text_config` decides.
    tied_as_part: ClassVar[bool | None] = None
    # Whether it is enough that `text_config` says true.
    tied_by_text = False
    # Whether the file gets M-RoPE's sections, of an architecture that can do without.
    sectioned = False
    # Whether attention rotates, of an architecture whose files say it (`capabilities.SWITCHED`).
    rotates = True
    # Whether a vocabulary of SentencePiece's form keeps its merges (llama.cpp's tokenizer gemma4).
    merges_by_rank = False

    def __init__(self, config: Config) -> None:
        values = config.values
        text = text_part(values)
        self.has_stray_part = text is None and values.get("text_config") is not None
        if text is not None:
            values = dict(text)
            if self.tied_as_part is not None:
                tied = config.flag("tie_word_embeddings", default=self.tied_as_part)
                if self.tied_by_text and text.get("tie_word_embeddings") is True:
                    tied = True
                values["tie_word_embeddings"] = tied
        named = {
            ours: values[own]
            for ours, own in self.attribute_map.items()
            if own in values
        }
        self.config = config = replace(
            config, values={**self.defaults, **values, **named}
        )
        self.n_layers = config.integer("num_hidden_layers")
        self.n_embd = config.integer("hidden_size")
        self.n_heads = config.integer("num_attention_heads")
        self.n_kv_heads = config.integer("num_key_value_heads", default=self.n_heads)
        self.head_dim = config.integer("head_dim", default=self.n_embd // self.n_heads)
        self.n_ff = self.read_n_ff(config)
        self.vocab_size = config.integer("vocab_size")
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"{config.source}: num_attention_heads {self.n_heads} is not a multiple of "
                f"num_key_value_heads {self.n_kv_heads}"
            )
        self.check()

    @classmethod
    def of(cls, config: Config) -> Family:
        """The converter of a checkpoint of this ``model_type``."""
        return cls(config)

    def read_n_ff(self, config: Config) -> int:
        """The width of the feed-forward part."""
        # a model whose layers all have experts may say no other size
        return int(config.integer("intermediate_size", "moe_intermediate_size"))

    def check(self) -> None:
        """Raise ``CheckpointError`` for a configuration that this architecture cannot run as
        meant."""

    def require(self, name: str, accepted: object, why: str) -> None:
        """``accepted``: the value, or a tuple of those that are accepted."""
        value = self.config.values.get(name)
        if value is not None and value not in (
            accepted if isinstance(accepted, tuple) else (accepted,)
        ):
            raise self.refused(f"{name} is {value!r}; {why}")

    def refused(self, why: str) -> CheckpointError:
        """An error that names the configuration."""
        return CheckpointError(f"{self.config.source}: {why}")

    @property
    def is_tied(self) -> bool:
        """Whether the output matrix is the embedding."""
        return self.config.flag("tie_word_embeddings")

    def untie(self) -> None:
        """Take the output matrix for one of its own, whatever the configuration says."""
        self.config = self.config.with_values(tie_word_embeddings=False)

    def rope(self) -> CheckpointRope:
        """What of the scaling cannot be taken is its ``problem``. Raises ``GgextError`` for what no
        scaling can do without."""
        if self.arch in UNROTATED or not self.rotates:
            context = self.config.integer("max_position_embeddings")
            return CheckpointRope(
                RopeScaling(), RopeGeometry(0, self.head_dim, 1.0, "norm", context)
            )
        values = {**self.config.values, "head_dim": self.head_dim}
        layout = capability_of(self.arch, sectioned=self.sectioned).layout
        rope = read_replaceable_rope(values, layout, self.config.source)
        if not self.has_stray_part:
            return rope
        note = (
            "config.json has a text_config, which transformers does not read in a model of text "
            "alone: it changes nothing"
        )
        return replace(rope, notes=(*rope.notes, note))

    def metadata(self) -> dict[str, Any]:
        """Hyperparameters under the architecture's prefix, which the caller adds. RoPE is not among
        them."""
        return {
            "block_count": self.n_layers,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "vocab_size": self.vocab_size,
        }

    def scalars(self) -> dict[str, list[str]]:
        """Metadata (full keys) that the checkpoint keeps as tensors of one value each: key → their
        names."""
        return {}

    def scalar_shape(self, name: str) -> tuple[int, ...]:  # noqa: ARG002 - of most it is this
        """The shape that such a tensor has in a checkpoint."""
        return ()

    def sliding_window(self, period: int) -> dict[str, Any]:
        """The keys of a window over some layers: those that ``layer_types`` names, else all but
        each n-th, n the ``period`` or what an old configuration says in its place."""
        if self.config.values.get("layer_types") is None:
            period = self.config.integer("sliding_window_pattern", default=period)
        slides = self.sliding_layers(
            [(i + 1) % period != 0 for i in range(self.n_layers)]
        )
        window = self.config.integer("sliding_window")
        return {
            "attention.sliding_window": window,
            "attention.sliding_window_pattern": slides,
        }

    def sliding_layers(self, usual: list[bool]) -> list[bool]:
        """Which layers ``layer_types`` says attend to a window; ``usual`` where it says nothing."""
        kinds = self.config.values.get("layer_types")
        if kinds is None:
            return usual
        if not names_each(kinds, self.n_layers, (FULL, SLIDING)):
            raise self.refused(
                f"layer_types must name {FULL} or {SLIDING} for each of "
                f"{self.n_layers} layers"
            )
        return [kind == SLIDING for kind in kinds]

    def stored_name(self, name: str) -> str:
        """The name that the rules have for a tensor that the checkpoint calls ``name``: what
        transformers maps, it loads under either."""
        return name

    def tensors(self) -> Iterator[TensorRule]:
        raise NotImplementedError


_OF_TEXT = re.compile(r"^(model\.)?language_model\.(model\.)?")


def text_part_name(name: str) -> str:
    """The name that a text model has for a tensor of the text part of a model that sees too, in
    each of the layouts that transformers has saved."""
    head = name.removeprefix("model.").removeprefix("language_model.")
    return head if head.startswith("lm_head.") else _OF_TEXT.sub("model.", name)


def names_each(kinds: object, n_layers: int, known: tuple[str, ...]) -> bool:
    """Whether ``kinds`` is a list of as many names as there are layers, all of them known."""
    return (
        isinstance(kinds, list)
        and len(kinds) == n_layers
        and all(kind in known for kind in kinds)
    )


def weight(module: str, *shape: int, **transforms: Any) -> TensorRule:
    """The rule of one module's ``weight``; ``transforms``: as in `TensorRule`."""
    return TensorRule((f"{module}.weight",), shape, **transforms)


def linear(
    module: str,
    rows: int,
    columns: int,
    order: RowOrder | None = None,
    *,
    bias: bool = True,
    unless: str = "",
) -> Iterator[TensorRule]:
    """A projection's weight, and its bias where the checkpoint has one. ``bias``: whether llama.cpp
    adds one; ``unless``: why the model has none, whatever the checkpoint holds."""
    yield weight(module, rows, columns, rows=order)
    if bias or unless:
        yield TensorRule(
            (f"{module}.bias",), (rows,), rows=order, optional=True, unless=unless
        )


def with_bias(
    module: str, *shape: int, order: RowOrder | None = None
) -> Iterator[TensorRule]:
    """A module's weight and its bias, which llama.cpp both needs."""
    yield weight(module, *shape, rows=order)
    yield TensorRule((f"{module}.bias",), shape[:1], rows=order)


def stacked(template: str, count: int, *shape: int, **transforms: Any) -> TensorRule:
    """One tensor of all experts' weights; ``template``: a module's name with ``{}`` for the
    expert's number."""
    return TensorRule(
        tuple(f"{template.format(i)}.weight" for i in range(count)), shape, **transforms
    )


def correction(source: str, count: int, layer: int) -> TensorRule:
    """What is added to the scores of ``count`` experts where they are chosen, and only there."""
    return TensorRule((source,), (count,), f"blk.{layer}.exp_probs_b.bias")


def experts(
    module: str,
    count: int,
    n_embd: int,
    n_ff: int,
    names: str = "gate_proj up_proj down_proj",
    target: str | None = None,
) -> Iterator[TensorRule]:
    """The routed experts' projections; ``names``: of the gate's, of the one next to it, and of the
    way back. ``target``: the GGUF names with ``{}`` for gate, up or down, where the ``gguf``
    package has none."""
    gate, up, down = names.split()
    targets = [target and target.format(part) for part in ("gate", "up", "down")]
    # As transformers 5 has it in memory, and saves it where asked to.
    fused = f"{module}.experts"
    stacked_by_mlx = f"{module}.switch_mlp.{{}}.weight"
    halves = ((gate, slice(0, n_ff)), (up, slice(n_ff, None)))
    for (name, part), written_as in zip(halves, targets, strict=False):
        half = TensorRule(
            (f"{fused}.gate_up_proj",),
            (count, 2 * n_ff, n_embd),
            target=written_as,
            arranged=partial(rows_of_each, part),
            written=(count, n_ff, n_embd),
            instead=TensorRule((stacked_by_mlx.format(name),), (count, n_ff, n_embd)),
        )
        template = f"{module}.experts.{{}}.{name}"
        yield stacked(template, count, n_ff, n_embd, instead=half, target=written_as)
    shape = (count, n_embd, n_ff)
    by_mlx = TensorRule((stacked_by_mlx.format(down),), shape)
    whole = TensorRule(
        (f"{fused}.down_proj",), shape, target=targets[2], instead=by_mlx
    )
    template = f"{module}.experts.{{}}.{down}"
    yield stacked(template, count, n_embd, n_ff, instead=whole, target=targets[2])


def rows_of_each(part: slice, matrices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return matrices[:, part]


def columns_of_each(
    part: slice, matrices: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """As rows."""
    return matrices.swapaxes(1, 2)[:, part]


@cache
def half_split_to_adjacent(n_heads: int, head_dim: int) -> RowNumbers:
    """Row order that turns the rotary pairs (i, i + d/2) of each head, as transformers stores
    Llama's queries and keys, into neighbours (2i, 2i + 1), as llama.cpp's architecture rotates
    them."""
    import numpy as np

    rows = np.arange(n_heads * head_dim).reshape(n_heads, 2, head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)


@cache
def grouped_to_blocks(n_heads: int, n_kv_heads: int, head_dim: int) -> RowNumbers:
    """Row order of a fused projection: from groups of queries with their key and value (GPT-NeoX,
    Falcon) to all queries, all keys, all values."""
    import numpy as np

    groups = np.arange((n_heads + 2 * n_kv_heads) * head_dim).reshape(
        n_kv_heads, -1, head_dim
    )
    return np.concatenate(
        [groups[:, :-2].ravel(), groups[:, -2].ravel(), groups[:, -1].ravel()]
    )
