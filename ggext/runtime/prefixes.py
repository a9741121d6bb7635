"""Texts that had to leave a context for another one, kept in host memory.

A short request between two turns of a long chat empties the context that the chat stood in. What
would take long to read again is copied out before, and put back when a text comes that begins like
it. What is put back is checked as a file of `ggext.runtime.store` is: the last token is evaluated
again, and its logits are compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.arguments import check_fields
from ggext.errors import ModelError, UsageError
from ggext.footprint.machine import free_memory
from ggext.runtime.closing import Closing
from ggext.runtime.memory.gone import Gone
from ggext.runtime.reuse import TOLERANCE, apart, common_prefix_length, reusable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.base import Memory
    from ggext.runtime.regimes import Regime
    from ggext.runtime.window_copies import Checkpoint

#: Tokens that are read again rather than kept.
_FEW = 64
#: Nor is a copy of all tokens made for fewer than one of so many.
_PART = 8
#: What is kept takes one of so many bytes of the memory that is free.
_SHARE = 4


@dataclass(frozen=True)
class PrefixOptions:
    """How much of the texts that left a context is kept. Raises UsageError."""

    # Bytes of host memory at most; 0: nothing is kept there; None: a quarter of what is free.
    memory: int | None = None
    # An existing folder for what the memory does not hold, in files that no one else can open and
    # that vanish with the process; None: it is forgotten.
    folder: Path | None = None
    # Bytes in that folder at most; None: as many as there is room for.
    disk: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("memory", "disk"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(
                    f"{name} is {value}, but must be a number of bytes, 0 or more"
                )
        if self.disk is not None and self.folder is None:
            raise UsageError(
                f"disk is {self.disk}, which needs a folder: name one, or leave it out"
            )
        if self.folder is not None and not self.folder.is_dir():
            raise UsageError(f"folder is {str(self.folder)!r}, which is no folder")


@dataclass(frozen=True)
class Prefix:
    """A copy of a cache: the tokens in it and what had left it, its cells as llama.cpp writes them,
    and what goes with them."""

    tokens: Sequence[int]
    gone: Gone
    # What the policy tells of itself, and its blocks outside the cache.
    account: Mapping[str, Any]
    blocks: tuple[bytes, ...]
    regime: Regime
    aligned: int
    # After the last token, evaluated by itself, (n_vocab,).
    logits: NDArray[np.float32]
    cells: NDArray[np.uint8]
    windows: tuple[Checkpoint, ...]
    on_disk: bool = False

    @property
    def size(self) -> int:
        """Bytes, of which a text on disk has some in memory too."""
        windows = sum(window.data.nbytes for window in self.windows)
        return (
            self.cells.nbytes
            + self.logits.nbytes
            + windows
            + sum(map(len, self.blocks))
        )

    def serves(self, cache: Cache, prompt: Sequence[int]) -> bool:
        """Whether it can be put into the cache, and a text can go on from there."""
        return (
            self.regime
            == cache.regime_of(len(self.tokens))
            == cache.regime_of(len(prompt))
            and len(self.tokens) <= cache.n_ctx
        )


def copied(cache: Cache, memory: Memory) -> Prefix | None:
    """A copy of what is cached; None where it cannot be put back, or was cancelled. Raises
    ModelError."""
    import numpy as np

    if cache.regime != cache.regime_of(len(cache.tokens)):
        return None
    cells = memory.copied()
    if cells is None:
        return None
    gone = memory.gone
    account = memory.account()
    if cache.positions != memory.layout(len(cache.tokens), gone, account).places:
        return None
    return Prefix(
        tokens=[*cache.tokens],
        gone=gone.copy(),
        account=account,
        blocks=tuple(memory.blocks_outside()),
        regime=cache.regime,
        aligned=cache.aligned,
        logits=np.array(cache.logits(), np.float32),
        cells=cells,
        windows=_windows(cache),
    )


def _windows(cache: Cache) -> tuple[Checkpoint, ...]:
    """The copies that are not in the cells too: these have the state before the last token."""
    last = len(cache.tokens) - 1
    recurrent = cache.checkpoints.recurrent
    return tuple(
        kept for kept in cache.checkpoints.kept if not recurrent or kept.count < last
    )


def put_back(prefix: Prefix, cache: Cache, memory: Memory) -> None:
    """Makes the cache what it was. Where that cannot be it is empty, and what is evaluated again is
    as good."""
    import numpy as np

    try:
        memory.cut(0)
        gone = prefix.gone.copy()
        layout = memory.layout(len(prefix.tokens), gone, prefix.account)
        memory.put_back([*prefix.tokens], np.asarray(prefix.cells), layout.places)
        cache.checkpoints.prepend(prefix.windows)
        memory.take_up(gone)
        memory.resume(prefix.account, map(memoryview, prefix.blocks))
        there = cache.has_logits or memory.reread_last()
        if there and apart(cache.logits(), prefix.logits) <= TOLERANCE:
            cache.aligned = prefix.aligned
            return
    except ModelError:
        pass
    memory.cut(0)


def worth(lost: int, of: int) -> bool:
    """Whether `lost` tokens that would have to be read again are worth a copy of all ``of``."""
    return lost >= _FEW and lost * _PART >= of


class Prefixes(Closing):
    """The texts that left the contexts of one model, all made alike; the one that was used last
    stands last. One thread at a time changes them; any may ask what they `hold`."""

    def __init__(self, options: PrefixOptions | None = None) -> None:
        self._options = options or PrefixOptions()
        self._kept: tuple[Prefix, ...] = ()

    def close(self) -> None:
        """Forgets all."""
        self._kept = ()

    def hold(self, prompt: Sequence[int]) -> int:
        """How many tokens of a text need not be read again."""
        return max(
            (reusable(it.tokens, it.gone, prompt)[1] for it in self._kept), default=0
        )

    @property
    def keeps(self) -> bool:
        """Whether anything can be kept at all."""
        return self._options.memory != 0 or self._options.folder is not None

    def exchange(
        self,
        cache: Cache,
        memory: Memory,
        prompt: list[int],
        *,
        repeatable: bool = False,
    ) -> bool:
        """Before `prompt` is read into a cache: copies what it would take from there, and puts back
        what it begins with. Whether anything was done to the cache. Raises ModelError."""
        if not self.keeps:
            return False
        stays, here = reusable(cache.tokens, memory.gone, prompt)
        back, there = self._like(cache, prompt, repeatable=repeatable)
        known = max(stays, self._kept_of(cache.tokens, memory.gone))
        lost = len(cache.tokens) - known
        if known <= memory.gone.start:  # what left the context would be read again too
            lost += memory.gone.count
        leaves = worth(lost, len(cache.tokens)) and self._has_room(cache.cells.size)
        if leaves and (copy := copied(cache, memory)) is not None:
            self._keep(copy)
        if back is None or there < here + _FEW or cache.cancelled:
            return leaves
        put_back(back, cache, memory)
        self._used(back, there)
        return True

    def _like(
        self, cache: Cache, prompt: list[int], *, repeatable: bool
    ) -> tuple[Prefix | None, int]:
        """The kept text that saves most of reading another one, and how many tokens."""
        best = None
        most = 0
        for prefix in self._kept:
            if prefix.serves(cache, prompt):
                stays, count = reusable(prefix.tokens, prefix.gone, prompt)
                count = min(stays, prefix.aligned) if repeatable else count
                if count > most:
                    best = prefix
                    most = count
        return best, most

    def _kept_of(self, tokens: list[int], gone: Gone) -> int:
        """The most tokens of a cache that one of the texts has."""
        alike = (prefix for prefix in self._kept if prefix.gone == gone)
        return max(
            (common_prefix_length(prefix.tokens, tokens) for prefix in alike), default=0
        )

    def _has_room(self, size: int) -> bool:
        """Whether a text of so many bytes can be kept, if all others go."""
        most = self._most(sum(kept.size for kept in self._kept if not kept.on_disk))
        return most is None or size <= most or self._options.folder is not None

    def _used(self, prefix: Prefix, count: int) -> None:
        """It is in a context now: all that was worth keeping, or its beginning only."""
        self._replace(prefix, None)
        whole = len(prefix.tokens) + prefix.gone.count
        if worth(whole - count, whole):
            self._kept += (prefix,)

    def _keep(self, prefix: Prefix) -> None:
        """Keeps a text, in the place of those that it contains, and as long as there is room."""
        others = (kept for kept in self._kept if not _contains(prefix, kept))
        self._kept = (*others, prefix)
        while (excess := self._first_of_too_many(on_disk=False)) is not None:
            self._replace(excess, self._spilled(excess))
        while (excess := self._first_of_too_many(on_disk=True)) is not None:
            self._replace(excess, None)

    def _replace(self, prefix: Prefix, by: Prefix | None) -> None:
        kept = (by if it is prefix else it for it in self._kept)
        self._kept = tuple(it for it in kept if it is not None)

    def _first_of_too_many(self, *, on_disk: bool) -> Prefix | None:
        kept = [prefix for prefix in self._kept if prefix.on_disk is on_disk]
        size = sum(prefix.size for prefix in kept)
        most = self._options.disk if on_disk else self._most(size)
        return kept[0] if kept and most is not None and size > most else None

    def _most(self, size: int) -> int | None:
        """Bytes of memory for all texts, `size` of which they take now."""
        if self._options.memory is not None:
            return self._options.memory
        free = free_memory()
        return None if free is None else (free + size) // _SHARE

    def _spilled(self, prefix: Prefix) -> Prefix | None:
        """The same text with its cells on disk; None where there is no place for them."""
        import numpy as np

        if self._options.folder is None:
            return None
        try:
            with tempfile.TemporaryFile(dir=self._options.folder) as file:
                prefix.cells.tofile(file)
                file.flush()
                cells = np.memmap(file, np.uint8, "r")  # the file lives as long as this
            return replace(prefix, cells=cells, on_disk=True)
        except OSError:
            return None


def _contains(long: Prefix, short: Prefix) -> bool:
    """Whether hardly anything of a text is not in another one."""
    return (
        long.gone == short.gone
        and common_prefix_length(long.tokens, short.tokens) > len(short.tokens) - _FEW
    )
