"""The child of `ggext.runtime.first_load`: loads a file and evaluates a few tokens of it."""

from __future__ import annotations

import threading
from contextlib import suppress

from ggext.errors import GgextError
from ggext.runtime.channel import Channel
from ggext.runtime.child import exit_at_end
from ggext.runtime.engine import Model, Sampling, Session, SessionOptions

_OPTIONS = SessionOptions(n_ctx=256, n_batch=32)
#: A batch's graph is the same for more, which take longer than the load.
_TOKENS = 3
_TEXT = "The quick brown fox: 12,345 jumps – \N{HIRAGANA LETTER A}\N{GRINNING FACE}\n\n"
_BEAT = 0.1  # seconds between two signs of life


def serve(channel: Channel) -> None:
    """Replies whether all of it was done; false where llama.cpp or ggext refused something."""
    request = channel.receive()
    if request is None:
        return
    exit_at_end(channel)
    ended = threading.Event()
    loaded = 0.0

    def progress(fraction: float) -> bool:
        nonlocal loaded
        loaded = fraction
        return True

    def beat() -> None:
        """The parent may cancel at each sign of life, also while tokens are evaluated."""
        with suppress(OSError, ValueError):
            while not ended.wait(_BEAT):
                channel.send({"loaded": loaded})

    pulse = threading.Thread(target=beat, daemon=True)
    pulse.start()
    try:
        with Model.open(request["path"], request["gpu_layers"], progress) as model:
            _use(model)
        done = True
    except GgextError:
        done = False
    ended.set()
    pulse.join()
    channel.send({"result": done})


def _use(model: Model) -> None:
    """The graphs of a batch and of a token; the tokenizer; the samplers."""
    with Session(model, _OPTIONS) as session:
        session.evaluate([token % model.n_vocab for token in range(_TOKENS)])
        model.vocabulary()
        for token in model.tokenize(_TEXT, parse_special=True):
            model.token_to_piece(token)
        list(session.generate(Sampling(seed=1), max_tokens=2))
