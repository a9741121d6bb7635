"""A model for lm-evaluation-harness: its tasks on a GGUF file, in process, without a server.

    python -m ggext.lm_eval run --model ggext --model_args model=model.gguf --tasks hellaswag

runs the harness's own command line with the model ``ggext`` in it. In a program, importing this
module registers it, or `GgufLM` is given to ``lm_eval.simple_evaluate(model=...)`` as it is.

The harness's own ``gguf`` model asks a server that answers no such request (lm-evaluation-harness
4158), has no perplexity and lets the server cut answers. Here every request is read by the file's
own tokenizer and scored as `ggext.runtime.likelihood` scores everything else.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ggext.chat.prompt import Detokenizer, Prompts
from ggext.chat.transcript import Turn
from ggext.errors import GgextError, MissingExtraError, UsageError
from ggext.gguf.open import read_gguf
from ggext.gguf.shards import metadata_part
from ggext.quality.settings import tried_scaling
from ggext.runtime.engine import Model, Sampling, Session, SessionOptions
from ggext.runtime.likelihood import scores
from ggext.runtime.scaled import scaling_overrides

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    missing = MissingExtraError(
        "lm-eval", "lm-eval", "a model for lm-evaluation-harness"
    )
    if __name__ == "__main__":
        sys.exit(f"ggext: {missing}")
    raise missing from error

_log = logging.getLogger(__name__)
_MAX_ANSWER = 256  # tokens, where a task names no number: the harness's own

# What the harness hands over: the texts of a request, its context's tokens, its continuation's.
_Pair = tuple[tuple[str, str], list[int], list[int]]


@register_model("ggext")
class GgufLM(TemplateLM):  # type: ignore[misc]  # its types are not followed
    """A GGUF file as a model of lm-evaluation-harness.

    ``model``: the file. ``max_length``: tokens of the context; None: what the file is made for, or
    what fits into half of the free memory. ``scaling``: another than the file's own without baking
    it, such as ``yarn:4``. ``device``: ``cpu`` puts no layers on a GPU; else it is as many as
    ``gpu_layers`` says, None: as the library can. ``enable_thinking``: whether a chat template that
    can may open a reasoning block. A request that is longer than the context loses its beginning,
    as in the harness's other models; each is logged.

    Raises UsageError, GgufError, RopeError, ModelError.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        max_length: int | None = None,
        kv_type: str = "f16",
        scaling: str | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
        enable_thinking: bool = False,
        device: str | None = None,
        batch_size: int | str = 1,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1":
            raise UsageError(
                f"batch_size is {batch_size}, but texts are read one after another: leave it at 1"
            )
        path = metadata_part(Path(model))
        overrides = None
        if scaling is not None:
            header = read_gguf(path)
            context = max_length or int(header.arch_keys()["context_length"])
            overrides = scaling_overrides(header, tried_scaling(scaling, context))
        layers = 0 if device == "cpu" else gpu_layers
        self.model = Model.open(path, layers, overrides=overrides)
        try:
            self.session = Session(
                self.model,
                SessionOptions(
                    n_ctx=max_length,
                    threads=threads,
                    kv_type=kv_type,
                    leaves_memory=max_length is None,
                ),
            )
            self._prompts = Prompts(self.model, think=enable_thinking)
        except BaseException:
            self.model.close()
            raise
        for notice in self.session.notices:
            _log.warning(notice)

    @property
    def max_length(self) -> int:
        """Tokens of the context."""
        return self.session.n_ctx

    @property
    def eot_token_id(self) -> int:
        return self.model.eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, or EOS where there is none."""
        return self.model.bos if self.model.bos >= 0 else self.model.eos

    @property
    def tokenizer_name(self) -> str:
        """Names file and template in the harness's cache of requests."""
        template = hashlib.sha256(
            (self.model.chat_template or "").encode()
        ).hexdigest()[:16]
        return f"{self.model.path.name}-{self.model.header.size}-{template}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Tokens of a text, marks of a chat template included; one BOS where the vocabulary wants
        one, also where the text spells it, and never an EOS."""
        tokens = self.model.tokenize(string, add_special=False, parse_special=True)
        adds = add_special_tokens is not False and self.model.adds_bos
        if adds and tokens[:1] != [self.model.bos]:
            tokens.insert(0, self.model.bos)
        return tokens

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The file's template, which the harness notes down. Raises UsageError for a name."""
        if isinstance(chat_template, str):
            raise UsageError(
                f"the file has one chat template and none named {chat_template!r}"
            )
        return self.model.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns as the file's template writes them; without a generation prompt the last one
        is an answer that goes on. Raises UsageError for a file without a template."""
        template = self._prompts.template
        if template is None:
            raise UsageError(f"{self.model.path} has no chat template: ask without one")
        turns = [Turn(each["role"], each["content"]) for each in chat_history]  # type: ignore[arg-type]
        if add_generation_prompt:
            return template.render(turns, self._prompts.think)
        return template.render(turns[:-1], self._prompts.think) + turns[-1].content

    def _loglikelihood_tokens(
        self, requests: list[_Pair], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """In the order of their tokens, so that what begins alike is read once."""
        fitted = [self._fitted(context, answer) for _, context, answer in requests]
        scores: dict[int, tuple[float, bool]] = {}
        for i in _in_order(
            [context + answer for context, answer in fitted], disable_tqdm
        ):
            context, answer = fitted[i]
            scores[i] = self._scored(context + answer, len(context))
            self.cache_hook.add_partial("loglikelihood", requests[i][0], scores[i])
        return [scores[i] for i in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Of whole texts, in windows of the context where they are longer."""
        result = []
        for request in tqdm(
            requests, disable=disable_tqdm, desc="loglikelihood_rolling"
        ):
            (text,) = request.args
            tokens = self.tok_encode(text, add_special_tokens=False)
            total = 0.0
            for window in get_rolling_token_windows(
                tokens, self.prefix_token_id, self.max_length, 1
            ):
                context, answer = make_disjoint_window(window)
                total += self._scored([*context, *answer], len(context))[0]
            result.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return result

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """Answers up to the first of the task's stops, the model's own end, or the task's number
        of tokens. Raises UsageError for a number that leaves no room for the question."""
        prompts = []
        options = []
        for context, given in (request.args for request in requests):
            kwargs: dict[str, Any] = dict(normalize_gen_kwargs(given, _MAX_ANSWER))
            room = self.max_length - kwargs["max_gen_toks"]
            if room < 1:
                raise UsageError(
                    f"max_gen_toks is {kwargs['max_gen_toks']:,}, which leaves no room for a "
                    f"question in a context of {self.max_length:,} tokens: take a longer context"
                )
            prompts.append(self._last(self.tok_encode(context), room))
            options.append(kwargs)
        answers: dict[int, str] = {}
        for i in _in_order(prompts, disable_tqdm):
            answers[i] = self._answer(prompts[i], options[i])
            self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
        return [answers[i] for i in range(len(requests))]

    def _answer(self, prompt: list[int], options: dict[str, Any]) -> str:
        self.session.evaluate(prompt)
        text = Detokenizer(self.model)
        stops = [stop for stop in options["until"] if stop]
        for token in self.session.generate(_sampling(options), options["max_gen_toks"]):
            text.push(token)
            if any(stop in text.text for stop in stops):
                break
        text.rest()
        ends = (place for stop in stops if (place := text.text.find(stop)) >= 0)
        return text.text[: min(ends, default=len(text.text))]

    def _scored(self, tokens: list[int], first: int) -> tuple[float, bool]:
        """The log-likelihood of tokens[first:], and whether each is the likeliest."""
        total = 0.0
        greedy = True
        for part in scores(self.session, tokens, first):
            total -= float(part.nll.sum())
            greedy = greedy and bool(part.greedy.all())
        return total, greedy

    def _fitted(
        self, context: list[int], answer: list[int]
    ) -> tuple[list[int], list[int]]:
        """Without the beginning of what is longer than the context. The answer's last token is
        never read, only scored."""
        if not answer:
            raise UsageError(
                "a task asks for the likelihood of an empty answer: mend its choices"
            )
        whole = self._last([*context, *answer], self.max_length + 1)
        start = max(1, len(whole) - len(answer))
        return whole[:start], whole[start:]

    def _last(self, tokens: list[int], most: int) -> list[int]:
        if len(tokens) > most:
            _log.warning("a request of %d tokens loses its first %d: it is longer than the context "
                         "of %d", len(tokens), len(tokens) - most, self.max_length)  # fmt: skip
        return tokens[-most:]


def _sampling(options: dict[str, Any]) -> Sampling:
    """Greedy, or what a task samples by. Raises UsageError for a value out of range."""
    if not options["do_sample"]:
        return Sampling(temperature=0.0)
    known = {"temperature", "top_k", "top_p", "min_p", "seed"}
    return Sampling(**{name: value for name, value in options.items() if name in known})


def _in_order(texts: Iterable[Sequence[int]], quiet: bool) -> Iterator[int]:
    """The places of the texts, sorted by their tokens: what begins alike follows each other."""
    ordered = [
        i for _, i in sorted((list(tokens), i) for i, tokens in enumerate(texts))
    ]
    return iter(tqdm(ordered, disable=quiet, desc="ggext"))


def main() -> None:
    """The harness's own command line, with the model ``ggext`` in it. An error of a file or an
    option ends it in one line."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except GgextError as error:
        sys.stderr.write(f"ggext: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
