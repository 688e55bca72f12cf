"""Fits are non-negative, by relative error, and not led astray by a wild reading."""

from random import Random

import pytest

from maveriq_planner.least_squares import fit_non_negative


def test_constants_that_wrote_the_readings_are_found() -> None:
    rows = [[float(n), float(n * b), 1.0] for n in (2, 4, 30) for b in (1, 2, 8)]
    readings = [1.5 * n + 0.2 * nb + 7 for n, nb, _ in rows]
    assert fit_non_negative(rows, readings) == pytest.approx((1.5, 0.2, 7.0))


def test_one_wild_reading_in_many_moves_little() -> None:
    random = Random(1)
    rows = [[float(n), 1.0] for n in (1, 2, 4, 8) for _ in range(4)]
    readings = [(1.5 * n + 7) * random.gauss(1, 0.002) for n, _ in rows]
    readings[5] *= 3
    layer, ends = fit_non_negative(rows, readings)
    assert layer == pytest.approx(1.5, rel=0.02)
    assert ends == pytest.approx(7, rel=0.02)


def test_of_two_proportional_columns_the_earlier_is_used() -> None:
    assert fit_non_negative([[2.0, 4.0], [3.0, 6.0]], [10.0, 15.0]) == pytest.approx((5.0, 0.0))


def test_a_constant_that_readings_would_have_below_0_is_0_and_the_others_are_fitted_without_it() -> None:
    rows = [[float(n), 1.0] for n in (1, 2, 4)]
    layer, ends = fit_non_negative(rows, [2.0 * n - 0.5 for n, _ in rows])
    assert ends == 0
    assert 1.5 < layer < 2.0


def test_a_column_that_no_sample_has_gets_nothing() -> None:
    assert fit_non_negative([[1.0, 0.0], [2.0, 0.0]], [3.0, 6.0]) == pytest.approx((3.0, 0.0))
