"""Qwen 3-Next and Qwen 3-Coder-Next: three layers of four are a gated delta net, whose state does
not grow with the text; the fourth attends, a quarter of each head rotated and the result gated; and
routed experts in every layer, and one that is always asked. Its layers that predict a second
token are left out.

llama.cpp takes rms_norm_eps in the norm of the delta net's queries and keys, where transformers has
1e-6 whatever rms_norm_eps is: up to 1e-5 the logits of the tests' models do not show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, names_each, weight
from ggext.converters.llama import QKV, Llama
from ggext.converters.qwen2_moe import GatedSharedExpert

from ggext.rope.families import FULL

if TYPE_CHECKING:
    import numpy as np
    from ggext.converters.base import RowNumbers

LINEAR = "linear_attention"
_LARGEST_EPSILON = 1e-5


class GatedDeltaNet(Llama):
    """Attention in some layers, a gated delta net in the others. Subclasses say its projections
    (``mixer``). ``n_keys``, ``n_values``: heads of the delta net; ``n_state``: values of one head
    of each kind; each key serves n_values / n_keys values. ``channels``: queries, keys and values,
    which the convolution, ``width`` tokens wide, goes over together."""

    defaults = {
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    }
    biased = QKV
    rotates_part = True

    def check(self) -> None:
        super().check()
        number = self.config.integer
        self.n_keys = number("linear_num_key_heads")
        self.n_values = number("linear_num_value_heads")
        self.n_state = number("linear_key_head_dim")
        self.width = number("linear_conv_kernel_dim", minimum=2)
        self.channels: int = self.n_state * (2 * self.n_keys + self.n_values)
        why = f"llama.cpp's architecture {self.arch}"
        self.require(
            "linear_value_head_dim",
            self.n_state,
            f"{why} has linear_key_head_dim, {self.n_state}",
        )
        if self.n_values % self.n_keys:
            raise self.refused(
                f"linear_num_value_heads {self.n_values} is not a multiple "
                f"of linear_num_key_heads {self.n_keys}"
            )
        self.limit_epsilon(
            _LARGEST_EPSILON,
            "takes it in the delta net's own norms, where transformers has 1e-6",
        )
        self.recurs = self._recurrent_layers()

    def _recurrent_layers(self) -> list[bool]:
        kinds = self.config.values.get("layer_types")
        if kinds is None:
            interval = self.config.integer("full_attention_interval", default=4)
            recurs = [bool((i + 1) % interval) for i in range(self.n_layers)]
        elif not names_each(kinds, self.n_layers, (FULL, LINEAR)):
            raise self.refused(
                f"layer_types must name {FULL} or {LINEAR} for each of "
                f"{self.n_layers} layers"
            )
        else:
            recurs = [kind == LINEAR for kind in kinds]
        if (
            len(set(recurs)) < 2
        ):  # llama.cpp aborts on a model without one of the two caches
            raise self.refused(
                f"all layers are {LINEAR if recurs[0] else FULL}; llama.cpp "
                "needs both kinds"
            )
        return recurs

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "ssm.conv_kernel": self.width,
            "ssm.state_size": self.n_state,
            "ssm.group_count": self.n_keys,
            "ssm.time_step_rank": self.n_values,
            "ssm.inner_size": self.n_state * self.n_values,
            "attention.recurrent_layers": self.recurs,
        }

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield from self.norm(self.final_norm)
        yield from self.output()
        for i, recurs in enumerate(self.recurs):
            block = f"model.layers.{i}"
            yield from self.norms(block)
            if recurs:
                yield from self.mixer(f"{block}.linear_attn", f"blk.{i}")
            else:
                yield from self.attention(f"{block}.self_attn")
            yield from self.mlp(f"{block}.mlp", i)

    def norm(self, module: str) -> Iterator[TensorRule]:
        yield weight(module, self.n_embd, plus=1.0)

    def attention(self, module: str) -> Iterator[TensorRule]:
        """A head of ``q_proj`` is its query, then its gate, as llama.cpp has them."""
        q_rows = self.n_heads * self.head_dim
        kv_rows = self.n_kv_heads * self.head_dim
        yield from self.project(module, "q_proj", 2 * q_rows, self.n_embd)
        yield from self.project(module, "k_proj", kv_rows, self.n_embd)
        yield from self.project(module, "v_proj", kv_rows, self.n_embd)
        yield from self.project(module, "o_proj", self.n_embd, q_rows)
        yield weight(f"{module}.q_norm", self.head_dim, plus=1.0)
        yield weight(f"{module}.k_norm", self.head_dim, plus=1.0)

    def mixer(self, module: str, block: str) -> Iterator[TensorRule]:
        raise NotImplementedError


def negative_exponential(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The decay that the file has, of its logarithm."""
    import numpy as np

    decay: np.ndarray[Any, Any] = -np.exp(values.astype("<f8")).astype("<f4")
    return decay


def logarithm_of_negative(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What `negative_exponential` takes, of what it gives."""
    import numpy as np

    logarithm: np.ndarray[Any, Any] = np.log(-values.astype("<f8")).astype("<f4")
    return logarithm


class Qwen3Next(GatedSharedExpert, GatedDeltaNet):
    arch = "qwen3next"
    defaults = (
        GatedSharedExpert.defaults
        | GatedDeltaNet.defaults
        | {
            "norm_topk_prob": True,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
        }
    )
    normalizes = True

    def mixer(self, module: str, block: str) -> Iterator[TensorRule]:
        """``in_proj_qkvz`` holds a query, a key, its values and their gates, key by key; the
        betas and alphas stay so."""
        n = self.n_state
        inner = self.n_state * self.n_values
        sizes = (self.n_keys, n, inner // self.n_keys)
        for target, part, rows in (
            ("attn_qkv", "qkv", self.channels),
            ("attn_gate", "z", inner),
        ):
            yield weight(
                f"{module}.in_proj_qkvz",
                self.channels + inner,
                self.n_embd,
                target=f"{block}.{target}.weight",
                rows=partial(rows_of_part, part, *sizes),
                written=(rows, self.n_embd),
            )
        yield weight(f"{module}.in_proj_ba", 2 * self.n_values, self.n_embd)
        yield weight(
            f"{module}.conv1d",
            self.channels,
            1,
            self.width,
            written=(self.channels, self.width),
        )
        yield TensorRule(
            (f"{module}.dt_bias",), (self.n_values,), f"{block}.ssm_dt.bias"
        )
        yield TensorRule(
            (f"{module}.A_log",),
            (self.n_values,),
            f"{block}.ssm_a",
            computed=negative_exponential,
            undone=logarithm_of_negative,
        )
        yield weight(f"{module}.norm", n)
        yield weight(f"{module}.out_proj", self.n_embd, inner)


@cache
def rows_of_part(part: str, n_keys: int, n_state: int, n_values: int) -> RowNumbers:
    """The rows of all queries, all keys and all values, or of all gates, in a projection that has
    them key by key. ``n_values``: rows of the values that belong to one key."""
    import numpy as np

    groups = np.arange(n_keys * 2 * (n_state + n_values)).reshape(n_keys, -1)
    bounds = np.cumsum([n_state, n_state, n_values])
    parts = dict(zip("qkvz", np.split(groups, bounds, axis=1), strict=True))
    return np.concatenate([parts[name].ravel() for name in part])


FAMILY = Qwen3Next
