"""The tokens of a text that left its cache, as a digest."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Sequence
from typing import Any

_DIGEST = re.compile("(?:[0-9a-f]{128})?")


class Gone:
    """Tokens that left the cache, after its first ``start``: their ``count`` and a digest of
    their values, so that a text can be recognized without keeping it.

    The digest is a chain over blocks of 256 tokens, so that it can be kept in a file and go on:
    ``digest`` of the whole blocks, and the ``rest`` after them.
    """

    BLOCK = 256

    def __init__(
        self,
        start: int = 0,
        count: int = 0,
        digest: bytes = b"",
        rest: Sequence[int] = (),
    ) -> None:
        self.start = start
        self.count = count
        self.digest = digest
        self.rest = array("i", rest)

    def copy(self) -> Gone:
        """The same, which `add` does not change."""
        return Gone(self.start, self.count, self.digest, self.rest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gone) and self._values == other._values

    __hash__ = None  # type: ignore[assignment] # it changes

    @property
    def _values(self) -> tuple[int, int, bytes, array[int]]:
        return self.start, self.count, self.digest, self.rest

    def add(self, start: int, tokens: Sequence[int]) -> None:
        """These tokens left, after the first `start`."""
        self.start = start
        self.count += len(tokens)
        self.rest.extend(tokens)
        whole = len(self.rest) - len(self.rest) % self.BLOCK
        for first in range(0, whole, self.BLOCK):
            block = self.rest[first : first + self.BLOCK]
            self.digest = hashlib.blake2b(self.digest + block.tobytes()).digest()
        del self.rest[:whole]

    def as_json(self) -> dict[str, Any]:
        """For `of_json`."""
        return {
            "start": self.start,
            "count": self.count,
            "digest": self.digest.hex(),
            "rest": self.rest.tolist(),
        }

    @classmethod
    def of_json(cls, saved: Any) -> Gone:
        """What `as_json` made. Raises ValueError for anything else."""
        there = saved if isinstance(saved, dict) else {}
        start, count = there.get("start"), there.get("count")
        digest, rest = there.get("digest"), there.get("rest")
        if (
            isinstance(start, int)
            and isinstance(count, int)
            and start >= 0
            and count > 0
            and isinstance(digest, str)
            and _DIGEST.fullmatch(digest) is not None
            and bool(digest) is (count >= cls.BLOCK)
            and isinstance(rest, list)
            and len(rest) == count % cls.BLOCK
            and all(isinstance(token, int) and 0 <= token < 2**31 for token in rest)
        ):
            return cls(start, count, bytes.fromhex(digest), rest)
        raise ValueError("it does not describe what left a context")

    def found_in(self, prompt: Sequence[int]) -> bool:
        """Whether `prompt` has them where they were, and goes on after them."""
        end = self.start + self.count
        if not self.count or len(prompt) <= end:
            return False
        there = Gone()
        there.add(self.start, prompt[self.start : end])
        return there == self
