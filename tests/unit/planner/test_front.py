"""The front holds what nothing else beats."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maveriq_planner.front import pareto, thinned

POINTS = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=40)


@given(POINTS)
def test_the_front_is_what_no_point_beats_and_each_point_once(points: list[tuple[int, int, int]]) -> None:
    chosen = [points[i] for i in pareto(np.array(points, dtype=float))]
    beaten = {p for p in points if any(o != p and all(a <= b for a, b in zip(o, p, strict=True)) for o in points)}
    assert set(chosen) == set(points) - beaten
    assert len(chosen) == len(set(chosen))


def test_a_long_front_keeps_the_best_in_each_respect() -> None:
    costs = np.array([[float(i), float((i * 37) % 101), 100.0 - i] for i in range(101)])
    kept = thinned(costs, 10)
    assert len(kept) == 10
    assert costs[kept].min(axis=0).tolist() == costs.min(axis=0).tolist()
    assert costs[kept, 0].tolist() == sorted(costs[kept, 0])
