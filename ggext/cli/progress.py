"""A bar of bytes and rate on standard error, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def transfer(nbytes: int, name: str) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm  # 0.07 s, not spent where nobody watches

    with tqdm(total=nbytes, unit="B", unit_scale=True, desc=name, leave=False) as bar:

        def advance(written: int) -> None:
            bar.update(written)

        yield advance
