"""What a family of models must say, and the tensor transforms that families share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggext.errors import CheckpointError
from ggext.rope.capabilities import capability_of
from ggext.rope.config import CheckpointRope, read_rope

if TYPE_CHECKING:
    import numpy as np

    from ggext.checkpoint.config import Config


@dataclass(frozen=True)
class TensorRule:
    """One tensor of the checkpoint and what becomes of it.

    ``shape``: PyTorch order, as the configuration implies it. ``row_order``: for each written row the
    row of the checkpoint's tensor that it is, ``None`` for unchanged. ``optional``: may be absent.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    row_order: np.ndarray[Any, np.dtype[np.intp]] | None = None
    optional: bool = False


class Family:
    """A family of models. Subclasses state ``arch`` and ``tensors``, and refuse in ``check`` what their
    architecture in llama.cpp would compute otherwise."""

    arch: str

    def __init__(self, config: Config) -> None:
        self.config = config
        self.n_layers = config.integer("num_hidden_layers")
        self.n_embd = config.integer("hidden_size")
        self.n_heads = config.integer("num_attention_heads")
        self.n_kv_heads = config.integer("num_key_value_heads", default=self.n_heads)
        self.head_dim = config.integer("head_dim", default=self.n_embd // self.n_heads)
        self.n_ff = config.integer("intermediate_size")
        self.vocab_size = config.integer("vocab_size")
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"{config.source}: num_attention_heads {self.n_heads} is not a multiple of "
                f"num_key_value_heads {self.n_kv_heads}"
            )
        self.check()

    def check(self) -> None:
        """Raise ``CheckpointError`` for a configuration that this architecture cannot run as meant."""

    def require(self, name: str, wanted: object, why: str) -> None:
        value = self.config.values.get(name)
        if value is not None and value != wanted:
            raise CheckpointError(f"{self.config.source}: {name} is {value!r}; {why}")

    def rope(self) -> CheckpointRope:
        layout = capability_of(self.arch).layout
        values = {**self.config.values, "head_dim": self.head_dim}
        return read_rope(values, layout, self.config.source)

    def metadata(self) -> dict[str, Any]:
        """Hyperparameters under the architecture's prefix, which the caller adds. RoPE is not among them."""
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

    def tensors(self) -> Iterator[TensorRule]:
        raise NotImplementedError


def half_split_to_adjacent(n_heads: int, head_dim: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Row order that turns rotary pairs (i, i + d/2) of each head into neighbours (2i, 2i + 1).

    transformers stores Q and K of Llama for the half-split layout, llama.cpp's architecture rotates
    adjacent dimensions.
    """
    import numpy as np

    rows = np.arange(n_heads * head_dim).reshape(n_heads, 2, head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)
