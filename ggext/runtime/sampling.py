"""How the next token is chosen: options, and the llama.cpp samplers made from them."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggext.arguments import check_fields
from ggext.errors import ModelError, UsageError
from ggext.runtime import llama
from ggext.runtime.llama import lib

if TYPE_CHECKING:
    from ggext.runtime.model import Model

_MAX_SEED = 2**32 - 2  # llama.cpp takes 2^32 - 1 as "choose one"
REPEAT_WINDOW = 64


@dataclass(frozen=True)
class Sampling:
    """Options of the sampler chain; the defaults are those of llama.cpp's own programs.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repeat_penalty`` 1 turn
    the sampler off. ``repeat_penalty`` looks at the last 64 tokens. ``seed`` None draws a fresh one
    for each answer. ``grammar``: GBNF with a rule ``root``, which the answer will match. Raises
    UsageError for a value out of its range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
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


class Chooser:
    """Chooses tokens one after the other; ``history``: the tokens before, for the repeat penalty.

    Raises UsageError for a grammar that llama.cpp cannot read. `close` it.
    """

    def __init__(self, sampling: Sampling, model: Model, history: Sequence[int]) -> None:
        self._lib = lib()
        self._grammar = None if sampling.grammar is None else _new_grammar(sampling.grammar, model)
        self._chain = self._lib.llama_sampler_chain_init(
            self._lib.llama_sampler_chain_default_params()
        )
        for sampler in _samplers(self._lib, sampling, model.n_vocab):
            self._lib.llama_sampler_chain_add(self._chain, sampler)
        for token in history[-REPEAT_WINDOW:]:
            self._lib.llama_sampler_accept(self._chain, token)
        self._model = model

    def choose(self, context: Any) -> int:
        """The next token by the context's last logits. Raises ModelError where the grammar allows
        none."""
        if self._grammar is None:
            return int(self._lib.llama_sampler_sample(self._chain, context, -1))
        # As llama.cpp's own programs do: the grammar looks at one token, and at all only where that
        # one is wrong.
        candidates = _Candidates(self._lib, context, self._model.n_vocab)
        token = candidates.apply(self._chain)
        if not _Candidates.of(self._lib, token).allowed_by(self._grammar):
            candidates = _Candidates(self._lib, context, self._model.n_vocab)
            if not candidates.allowed_by(self._grammar):
                raise ModelError(
                    "no token of the vocabulary continues the answer as the grammar wants it"
                )
            token = candidates.apply(self._chain)
        self._lib.llama_sampler_accept(
            self._grammar, token
        )  # ends the process on a token that is not allowed
        self._lib.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Frees the samplers; further calls do nothing."""
        samplers, self._chain, self._grammar = (self._chain, self._grammar), None, None
        for sampler in samplers:
            if sampler:
                self._lib.llama_sampler_free(sampler)


class _Candidates:
    """Tokens with their logits, as samplers take them."""

    def __init__(self, module: Any, context: Any, n_vocab: int) -> None:
        import numpy as np

        logits = np.ctypeslib.as_array(module.llama_get_logits_ith(context, -1), (n_vocab,))
        self._fill(module, np.arange(n_vocab, dtype=np.int32), logits)

    @classmethod
    def of(cls, module: Any, token: int) -> _Candidates:
        """One token alone."""
        import numpy as np

        self = cls.__new__(cls)
        self._fill(module, np.array([token], np.int32), np.zeros(1, np.float32))
        return self

    def _fill(self, module: Any, tokens: Any, logits: Any) -> None:
        import numpy as np

        self._module = module
        self._rows = np.zeros(len(tokens), [("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        self._rows["id"], self._rows["logit"] = tokens, logits
        data = ctypes.cast(self._rows.ctypes.data, ctypes.POINTER(module.llama_token_data))
        self._array = module.llama_token_data_array(data, len(tokens), -1, False)

    def apply(self, chain: Any) -> int:
        """The token that the chain picks."""
        self._module.llama_sampler_apply(chain, ctypes.byref(self._array))
        return int(self._array.data[self._array.selected].id)

    def allowed_by(self, grammar: Any) -> bool:
        """Takes out what the grammar does not allow; whether anything is left."""
        import numpy as np

        self._module.llama_sampler_apply(grammar, ctypes.byref(self._array))
        return bool(np.isfinite(self._rows["logit"]).any())


def _new_grammar(grammar: str, model: Model) -> Any:
    llama.clear_log()
    vocab = lib().llama_model_get_vocab(model.open_handle())
    sampler = lib().llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    if not sampler:
        raise UsageError(f"the grammar is not GBNF with a rule root: {llama.reason()}")
    return sampler


def json_grammar(schema: str | Mapping[str, Any]) -> str:
    """GBNF for the JSON documents that a JSON schema describes, for `Sampling.grammar`. Raises
    UsageError.

    >>> 'root ::= ("true" | "false") space' in json_grammar({"type": "boolean"})
    True
    """
    lib("constraining an answer to a JSON schema")
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        return str(json_schema_to_gbnf(schema if isinstance(schema, str) else json.dumps(schema)))
    # The schema is a user's text; the converter raises whatever Python raises, assertions included.
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"the JSON schema cannot be made into a grammar: {words:.200}") from error


def _samplers(module: Any, sampling: Sampling, n_vocab: int) -> list[Any]:
    samplers = []
    if sampling.repeat_penalty != 1.0:
        penalty = sampling.repeat_penalty
        samplers.append(
            module.llama_sampler_init_penalties(n_vocab, REPEAT_WINDOW, penalty, 0.0, 0.0)
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
