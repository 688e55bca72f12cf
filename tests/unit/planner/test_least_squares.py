from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maveriq_planner.least_squares import fit_non_negative, solve_non_negative


def loss(rows: list[list[float]], targets: list[float], constants: tuple[float, ...]) -> float:
    return sum(
        (sum(x * c for x, c in zip(row, constants, strict=True)) - y) ** 2 for row, y in zip(rows, targets, strict=True)
    )


numbers = st.floats(-4, 4).map(lambda x: round(x, 2))


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=3, max_size=6))
def test_no_point_of_a_fine_grid_is_nearer_than_the_solution(table: list[tuple[float, ...]]) -> None:
    rows, targets = [list(line[:3]) for line in table], [line[3] for line in table]
    solved = solve_non_negative(rows, targets)
    assert min(solved) >= 0
    best = loss(rows, targets, solved)
    for step in product((-0.05, -1e-3, 0.0, 1e-3, 0.05), repeat=3):
        near = tuple(max(0.0, c + d) for c, d in zip(solved, step, strict=True))
        assert best <= loss(rows, targets, near) + 1e-6


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
