"""A bar of bytes and rate on standard error; silent where that is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def transfer(nbytes: int, name: str) -> Iterator[Callable[[int], None]]:
    from tqdm import tqdm

    with tqdm(total=nbytes, unit="B", unit_scale=True, desc=name, disable=None, leave=False) as bar:

        def advance(written: int) -> None:
            bar.update(written)

        yield advance
