"""Bars never lie: all cells are given out, and what is there is seen."""

from hypothesis import given
from hypothesis import strategies as some

from maveriq.cli.bars import cells


@given(some.lists(some.integers(0, 10**12), min_size=1, max_size=6), some.integers(6, 60))
def test_a_bar_is_exactly_as_wide_as_it_should_be(parts: list[int], width: int) -> None:
    shown = cells(parts, width)
    assert sum(shown) == (width if sum(parts) > 0 else 0)
    assert all(cell > 0 for cell, part in zip(shown, parts, strict=True) if part > 0)
    assert all(cell == 0 for cell, part in zip(shown, parts, strict=True) if part == 0)
