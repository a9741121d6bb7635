"""The self-tests: each tries one thing that may be wrong without a word."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ggext.doctor.report import Finding
from ggext.errors import GgextError

_CACHED = 100  # tokens that the form of the cache is tried on
_ANGLES = 1 << 17  # tokens of context that the native rotation is tried on


def rotation() -> Iterator[Finding]:
    yield _finding("native rotation", _try_rotation)


def cache() -> Iterator[Finding]:
    yield _finding("form of the cache", _try_cache)


def model() -> Iterator[Finding]:
    yield _finding("embedded model", _try_model)


def _finding(name: str, attempt: Callable[[], tuple[bool, str]]) -> Finding:
    try:
        passed, value = attempt()
    except GgextError as error:
        return Finding("tests", name, "wrong", str(error))
    except MemoryError:
        return Finding("tests", name, "wrong", "the memory ran out")
    if not passed:
        return Finding("tests", name, "wrong", value)
    return Finding("tests", name, "ok", value)


def _try_rotation() -> tuple[bool, str]:
    from ggext.proof.kernels import check_kernels
    from ggext.rope.methods import make_table
    from ggext.rope.scaling import RopeGeometry, RopeScaling

    geometry = RopeGeometry(
        n_rot=128, head_dim=128, base=500_000.0, layout="neox", trained_context=_ANGLES
    )
    checks = check_kernels(make_table(RopeScaling("none"), geometry), geometry)
    worst = max(check.value for check in checks)
    passed = all(check.passed for check in checks)
    return passed, f"{worst:.1e} off float64 at most, to position {_ANGLES:,}"


def _try_cache() -> tuple[bool, str]:
    """llama.cpp's undocumented form of cached tokens, and how it rotates keys: what raises is
    wrong."""
    from ggext.demo import TRAINED, bake
    from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions

    with (
        tempfile.TemporaryDirectory(prefix="ggext-doctor-") as folder,
        Model.open(bake(Path(folder), "none", TRAINED)) as model,
        Session(model, SessionOptions(memory=MemoryOptions("stream"))) as session,
    ):
        session.evaluate(range(_CACHED))
        cache = session.cache
        block = cache.take(0, _CACHED)
        cache.remove(0, _CACHED)
        cache.put(block)
        turned = cache.rotation_error()
    value = f"{_CACHED} tokens read as they were written; keys turned {turned:.1e} off llama.cpp's"
    return True, f"{value} at most"


def _try_model() -> tuple[bool, str]:
    """The whole way: convert with a scaling, verify the file and llama.cpp's kernels and graph,
    answer a question."""
    from ggext.demo import spot_check

    with tempfile.TemporaryDirectory(prefix="ggext-doctor-") as folder:
        example = spot_check(Path(folder))
    answer = example.answers["yarn"]
    value = f"{example.question} {answer}"
    if answer == example.right:
        return True, value
    return False, f"{value} (it should say {example.right!r})"
