"""The tables that a search may choose from."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggext.rope import methods
from ggext.rope.encode import encode
from ggext.rope.scaling import RopeGeometry, RopeScaling
from ggext.search.space import COORDINATES, Point, Space

SMOLLM2 = RopeGeometry(64, 64, 100000.0, "norm", 8192)
DEMO = RopeGeometry(32, 32, 1000.0, "norm", 256)
WIDE = RopeGeometry(128, 128, 1e6, "neox", 32768)


def yarn(geometry: RopeGeometry, factor: float) -> RopeScaling:
    context = int(factor * geometry.trained_context)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_context=geometry.trained_context,
        context=context,
    )


@pytest.mark.parametrize("geometry", [SMOLLM2, DEMO, WIDE])
@pytest.mark.parametrize("factor", [1.5, 2.0, 4.0, 16.0])
def test_the_start_is_yarn_to_the_last_bit(
    geometry: RopeGeometry, factor: float
) -> None:
    asked = yarn(geometry, factor)
    space = Space(asked, geometry, "llama")
    assert space.table(space.start) == methods.make_table(asked, geometry)
    assert space.free == COORDINATES


@settings(deadline=None, max_examples=50)
@given(
    st.floats(0.8, 1.25),
    st.floats(0.5, 4.0),
    st.integers(0, 31),
    st.integers(0, 31),
    st.data(),
)
def test_every_table_slows_the_pairs_more_and_more(
    gain: float, overshoot: float, first: int, last: int, data: st.DataObject
) -> None:
    geometry = data.draw(st.sampled_from([SMOLLM2, WIDE]))
    space = Space(yarn(geometry, 4.0), geometry, "llama")
    point = Point(gain, min(first, last), max(first, last, 1), overshoot)
    table = space.table(point)
    slowed = [
        t / w for t, w in zip(methods.theta(geometry), table.inv_freq, strict=True)
    ]
    factor = 4 * overshoot
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(slowed))
    assert all(a > b for a, b in pairwise(table.inv_freq))
    assert min(slowed) >= 1 - 1e-12
    assert max(slowed) <= factor * (1 + 1e-12)
    assert table.attention_factor == pytest.approx(gain * methods.yarn_gain(factor))
    assert table.context == 4 * geometry.trained_context


def test_the_bounds_are_the_ones_that_were_asked_for() -> None:
    space = Space(yarn(SMOLLM2, 2.0), SMOLLM2, "llama")
    for first in range(31):
        for last in range(max(first, 1), 32):
            scaling = space.scaling(Point(1.0, first, last, 1.0))
            assert scaling.beta_fast is not None
            assert scaling.beta_slow is not None
            found = methods.yarn_correction_range(
                scaling.beta_fast, scaling.beta_slow, True, 8192, SMOLLM2
            )
            assert found == (first, last)


def test_steps_halve_and_end_at_the_bounds() -> None:
    space = Space(yarn(SMOLLM2, 2.0), SMOLLM2, "llama")
    start = space.start
    lengths = []
    for halvings in range(4):
        moved = space.moved(start, "last", 1, halvings)
        assert moved is not None
        lengths.append(moved.last - start.last)
    assert lengths == [4, 2, 1, 1]
    point, steps = start, 0
    while (further := space.moved(point, "gain", 1, 0)) is not None:
        point, steps = further, steps + 1
    assert steps == 2
    assert point.gain <= 1.25
    assert space.moved(Point(1.0, 0, 5, 1.0), "first", -1, 0) is None
    # A factor below 1 would shorten the context.
    assert space.moved(Point(1.0, 0, 5, 0.5), "overshoot", -1, 2) is None


def test_what_no_file_can_say_is_not_searched() -> None:
    """Gemma 3's sliding layers would get a gain that is meant for the others alone."""
    geometry = RopeGeometry(64, 64, 1e6, "neox", 8192, sliding_base=10000.0)
    space = Space(yarn(geometry, 2.0), geometry, "gemma3")
    assert space.free == ("overshoot", "last", "first")
    assert space.moved(space.start, "gain", 1, 2) is None


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "mistral3", "cohere2"])
def test_every_point_that_is_offered_can_be_written_exactly(arch: str) -> None:
    space = Space(yarn(SMOLLM2, 2.0), SMOLLM2, arch)
    point = space.start
    for name in space.free:
        point = space.moved(point, name, 1, 1) or point
    assert encode(space.scaling(point), SMOLLM2, arch).exactness.is_exact
