"""Figures in a sentence keep what they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maveriq_planner.figures import figure, rounded


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.00042, "0.00042"), (31.4159, "31.42"), (12_345.6, "12,350"), (100, "100"), (0.05, "0.05"), (0, "0"),
     (-0.5, "-0.5"), (float("inf"), "without end"), (999.99, "1,000")],
)  # fmt: skip
def test_figures_show_four_digits_that_mean_something(value: float, words: str) -> None:
    assert figure(value) == words


@given(st.floats(1e-9, 1e9))
def test_no_figure_but_zero_reads_as_zero(value: float) -> None:
    assert float(figure(value).replace(",", "")) == pytest.approx(value, rel=1e-3)


@given(st.floats(1e-6, 1e9), st.booleans())
def test_an_offered_figure_is_short_and_never_on_the_wrong_side(value: float, up: bool) -> None:
    offered = rounded(value, 3, up=up)
    assert offered == pytest.approx(value, rel=1.1e-2)
    assert (offered - value) * (1 if up else -1) >= -1e-9 * value
    assert len(f"{offered:g}".replace(".", "").replace("-", "").lstrip("0").split("e")[0].rstrip("0")) <= 3
