"""How the next token is chosen: options, and the llama.cpp sampler chain made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ggext.errors import UsageError
from ggext.runtime.llama import lib

_MAX_SEED = 2**32 - 2  # llama.cpp takes 2^32 - 1 as "choose one"
REPEAT_WINDOW = 64


@dataclass(frozen=True)
class Sampling:
    """Options of the sampler chain; the defaults are those of llama.cpp's own programs.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repeat_penalty`` 1 turn
    the sampler off. ``repeat_penalty`` looks at the last 64 tokens. ``seed`` None draws a fresh one
    for each answer. Raises UsageError for a value out of its range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, math.inf)
        _check("top-k", self.top_k, 0, 2**31 - 1)
        _check("top-p", self.top_p, 0.0, 1.0)
        _check("min-p", self.min_p, 0.0, 1.0)
        _check("repeat-penalty", self.repeat_penalty, 0.01, 100.0)
        if self.seed is not None:
            _check("seed", self.seed, 0, _MAX_SEED)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        limit = f"from {low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
        raise UsageError(f"{name} is {value}, but must be {limit}")


def new_chain(sampling: Sampling, n_vocab: int) -> Any:
    """A llama.cpp sampler chain in llama.cpp's own order; the caller frees it."""
    module = lib()
    chain = module.llama_sampler_chain_init(module.llama_sampler_chain_default_params())
    for sampler in _samplers(module, sampling, n_vocab):
        module.llama_sampler_chain_add(chain, sampler)
    return chain


def _samplers(module: Any, sampling: Sampling, n_vocab: int) -> list[Any]:
    samplers = []
    if sampling.repeat_penalty != 1.0:
        penalty = sampling.repeat_penalty
        samplers.append(module.llama_sampler_init_penalties(n_vocab, REPEAT_WINDOW, penalty, 0.0, 0.0))
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
