"""How the next token is chosen: options, and the llama.cpp samplers made from them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggext.arguments import check_fields
from ggext.errors import ModelError, UsageError
from ggext.runtime.constraint import Constraint, Grammar, check, json_grammar
from ggext.runtime.llama import lib

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.model import Model

_MAX_SEED = 2**32 - 2  # llama.cpp takes 2^32 - 1 as "choose one"
REPEAT_WINDOW = 64

__all__ = ["REPEAT_WINDOW", "Chooser", "Sampling", "json_grammar"]


@dataclass(frozen=True)
class Sampling:
    """Options of the sampler chain; the defaults are those of llama.cpp's own programs.

    Raises UsageError for a value out of its range, and for a grammar that is none or too large.
    """

    # 0 is greedy.
    temperature: float = 0.8
    # 0 turns the sampler off.
    top_k: int = 40
    # 1 turns the sampler off.
    top_p: float = 0.95
    # 0 turns the sampler off.
    min_p: float = 0.05
    # Looks at the last 64 tokens; 1 turns it off.
    repeat_penalty: float = 1.0
    # None draws a fresh one for each answer.
    seed: int | None = None
    # GBNF with a rule `root`, or what `json_grammar` made of a JSON schema; the answer will follow
    # it.
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _check("temperature", self.temperature, 0.0, math.inf)
        _check("top-k", self.top_k, 0, 2**31 - 1)
        _check("top-p", self.top_p, 0.0, 1.0)
        _check("min-p", self.min_p, 0.0, 1.0)
        _check("repeat-penalty", self.repeat_penalty, 0.01, 100.0)
        if self.seed is not None:
            _check("seed", self.seed, 0, _MAX_SEED)
        if self.grammar is not None:
            check(self.grammar)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        limit = (
            f"from {low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
        )
        raise UsageError(f"{name} is {value}, but must be {limit}")


class Chooser:
    """Chooses tokens one after the other; ``history``: the tokens before, for the repeat penalty.

    Raises UsageError for a grammar that the vocabulary cannot follow. `close` it.
    """

    def __init__(
        self, sampling: Sampling, model: Model, history: Sequence[int]
    ) -> None:
        self._lib = lib()
        self._model = model
        self._chain: Any = None
        self._constraint = (
            None if sampling.grammar is None else Constraint(sampling.grammar, model)
        )
        self._chain = self._lib.llama_sampler_chain_init(
            self._lib.llama_sampler_chain_default_params()
        )
        for sampler in _samplers(self._lib, sampling, model.n_vocab):
            self._lib.llama_sampler_chain_add(self._chain, sampler)
        for token in history[-REPEAT_WINDOW:]:
            self._lib.llama_sampler_accept(self._chain, token)

    def choose(self, context: Any) -> int:
        """The next token by the context's last logits. Raises ModelError where the grammar allows
        none."""
        constraint = self._constraint
        if constraint is None:
            return int(self._lib.llama_sampler_sample(self._chain, context, -1))
        # As llama.cpp's own programs do: the grammar looks at one token, and at all only where that
        # one is wrong.
        token = _Candidates(self._lib, context, self._model.n_vocab).apply(self._chain)
        if not constraint.allows(token):
            candidates = _Candidates(self._lib, context, self._model.n_vocab)
            if not candidates.keep(constraint.mask()):
                raise ModelError(
                    "no token of the vocabulary continues the answer as the grammar wants it"
                )
            token = candidates.apply(self._chain)
        constraint.take(token)
        self._lib.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Frees the samplers; further calls do nothing."""
        chain = self._chain
        self._chain = None
        if chain:
            self._lib.llama_sampler_free(chain)


class _Candidates:
    """Tokens with their logits, as samplers take them."""

    def __init__(self, module: Any, context: Any, n_vocab: int) -> None:
        import numpy as np

        logits = np.ctypeslib.as_array(
            module.llama_get_logits_ith(context, -1), (n_vocab,)
        )
        self._module = module
        self._rows = np.zeros(n_vocab, [("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        self._rows["id"] = np.arange(n_vocab, dtype=np.int32)
        self._rows["logit"] = logits
        data = ctypes.cast(
            self._rows.ctypes.data, ctypes.POINTER(module.llama_token_data)
        )
        self._array = module.llama_token_data_array(data, n_vocab, -1, False)

    def apply(self, chain: Any) -> int:
        """The token that the chain picks."""
        self._module.llama_sampler_apply(chain, ctypes.byref(self._array))
        return int(self._array.data[self._array.selected].id)

    def keep(self, allowed: NDArray[np.bool_]) -> bool:
        """Takes out what is not allowed; whether anything is left."""
        import numpy as np

        self._rows["logit"][~allowed] = -np.inf
        return bool(np.isfinite(self._rows["logit"]).any())


def _samplers(module: Any, sampling: Sampling, n_vocab: int) -> list[Any]:
    samplers = []
    if sampling.repeat_penalty != 1.0:
        penalty = sampling.repeat_penalty
        samplers.append(
            module.llama_sampler_init_penalties(
                n_vocab, REPEAT_WINDOW, penalty, 0.0, 0.0
            )
        )
    if sampling.temperature == 0:
        return [*samplers, module.llama_sampler_init_greedy()]
    seed = module.LLAMA_DEFAULT_SEED if sampling.seed is None else sampling.seed
    return [
        *samplers,
        module.llama_sampler_init_top_k(sampling.top_k),
        module.llama_sampler_init_top_p(sampling.top_p, 1),
        module.llama_sampler_init_min_p(sampling.min_p, 1),
        module.llama_sampler_init_temp(sampling.temperature),
        module.llama_sampler_init_dist(seed),
    ]
