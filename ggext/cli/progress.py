"""What is going on and how long it takes, on standard error where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ggext.cli.process import note

_STEPS = "{n_fmt} of {total_fmt} {bar:12} {elapsed}, {remaining} left  {desc}"


@contextmanager
def transfer(nbytes: int, name: str) -> Iterator[Callable[[int], None]]:
    """A bar of bytes and rate."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm  # 0.07 s, not spent where no one watches

    with tqdm(total=nbytes, unit="B", unit_scale=True, desc=name, leave=False) as bar:

        def advance(written: int) -> None:
            bar.update(written)

        yield advance


class Steps:
    """How much of a known amount of work is done, and the time that is left; elsewhere than on a
    terminal a line for each step."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def step(self, name: str) -> None:
        if self._bar is None:
            note(f"  {name}")
        else:
            self._bar.set_description_str(name)

    def advance(self, amount: int) -> None:
        if self._bar is not None:
            self._bar.update(amount)

    def above(self, line: str) -> None:
        """A line on standard output, over the bar."""
        if self._bar is None:
            click.echo(line)
        else:
            self._bar.write(line, file=sys.stdout)


@contextmanager
def steps(work: int) -> Iterator[Steps]:
    """A bar over ``work``, in any unit, with the time that is left."""
    if not sys.stderr.isatty():
        yield Steps(None)
        return
    from tqdm import tqdm

    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
    with tqdm(total=work, bar_format=form, leave=False, mininterval=0.2) as bar:
        yield Steps(bar)


@contextmanager
def waiting(doing: str) -> Iterator[None]:
    """One line while something is done whose length no one knows."""
    if not sys.stderr.isatty():
        yield
        return
    sys.stderr.write(f"{doing} …")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


@contextmanager
def announced(count: int, name: str) -> Iterator[Callable[[str], None]]:
    """A bar of ``count`` steps with the time that is left; each step is announced by what it does.
    Where no one watches, a line for each."""
    if not sys.stderr.isatty():
        yield note
        return
    from tqdm import tqdm

    with tqdm(total=count, desc=name, leave=False, bar_format=_STEPS) as bar:
        done = 0

        def announce(doing: str) -> None:
            nonlocal done
            bar.set_description_str(f"{name}: {doing}", refresh=False)
            advanced = min(done, 1) if bar.n < count else 0
            bar.update(advanced)
            done += 1
            bar.refresh()

        yield announce
