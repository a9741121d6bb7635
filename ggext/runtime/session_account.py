"""What a session says of itself, and how it is stopped: from any thread, also while it computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ggext.runtime.cache import Cache
from ggext.runtime.closing import Closing
from ggext.runtime.context import SessionOptions
from ggext.runtime.memory.base import Memory
from ggext.runtime.model import Model
from ggext.runtime.reuse import reusable


class SessionAccount(Closing):
    """Counts of a session's tokens and cells; nothing here waits for what computes."""

    model: Model
    options: SessionOptions
    cache: Cache
    memory: Memory
    # Tokens that the context has room for, and that are read at once at most.
    n_ctx: int
    n_batch: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the cache, in the order of the text."""
        return tuple(self.cache.tokens)

    @property
    def used(self) -> int:
        """Tokens in the cache."""
        return len(self.cache.tokens)

    def holds(self, tokens: Sequence[int]) -> int:
        """How many of these tokens need no evaluation; also while another thread uses the session,
        for which it may be wrong then."""
        return reusable(self.cache.tokens, self.memory.gone, tokens)[1]

    @property
    def available(self) -> int:
        """Tokens that still fit before the context is full."""
        return (self.memory.limit or self.n_ctx) - self.used

    @property
    def adapter(self) -> Path | None:
        """The LoRA adapter that computes too."""
        return self.options.adapter

    @property
    def threads(self) -> int:
        """Threads that read a text now."""
        return self.cache.threads.counts.now

    @property
    def computes(self) -> str:
        """How, in words: what was chosen where the options leave it open."""
        flash = "on" if self.cache.flash_attention else "off"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        one = self.cache.threads.counts.for_one
        if one != self.threads:
            threads += f" ({one} for an answer)"
        return (
            f"{self.n_batch} tokens at once at most, {threads}, flash attention {flash}"
        )

    @property
    def dropped(self) -> int:
        """Tokens of the text that are not in the cache any more."""
        return self.memory.gone.count

    @property
    def ever_dropped(self) -> int:
        """Tokens that have left the cache since the session was opened, also of other texts."""
        return self.memory.left_before + self.memory.gone.count

    @property
    def forgotten(self) -> int:
        """Tokens that left the cache since the session was opened and that a question would have
        brought back, if there had been room for them outside."""
        return self.memory.forgotten

    @property
    def can_be_kept(self) -> bool:
        """Whether the tokens in the cache, what `snapshot` returns and what the memory says of
        itself are all that there is of the text."""
        memory = self.memory
        return (
            self.cache.positions
            == memory.layout(self.used, memory.gone, memory.account()).places
        )

    @property
    def trained(self) -> int:
        """Tokens that the model was trained on, before any extension."""
        return self.model.n_ctx_original

    def cancel(self) -> None:
        """Stops the running call within one node of the graph (on a GPU: within one batch).

        From any thread. A prefill keeps the batches that were whole; a generation ends with
        "cancelled". Without effect on a prefill that starts later.
        """
        self.cache.cancel()

    def resume(self) -> None:
        """Takes back a `cancel` that no call has seen yet."""
        self.cache.resume()
