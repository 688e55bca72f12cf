"""The cheapest whole fleet: never dearer than any other that does, under caps, spares and the cost of change."""

from itertools import product
from time import monotonic

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq_planner.provision import solve
from maveriq_planner.provisioning.checking import violations
from maveriq_planner.provisioning.fleet_mix import Limits, cheapest
from maveriq_planner.provisioning.problem import Change, Problem
from maveriq_planner.provisioning.routing import balanced

LIMITS = Limits(20.0, monotonic)
MOST = 5  # of each kind that brute force looks at


def bears(problem: Problem, counts: np.ndarray) -> bool:
    """By the same linear programme that says how busy the busiest is; the counts are all tried."""
    if (problem.of_pools(counts) > problem.caps).any():
        return False
    losses = [counts]
    if problem.spare:
        losses = [counts - np.eye(len(counts))[u] for u in np.flatnonzero(counts > 0)]
    for left in losses or [counts]:
        routing = balanced(problem, left)
        if routing is None or routing.busiest > 1 + 1e-6:
            return False
    return True


def by_brute_force(problem: Problem) -> float | None:
    costs = [
        problem.objective(np.array(counts, dtype=float))
        for counts in product(range(MOST + 1), repeat=problem.num_units)
        if bears(problem, np.array(counts, dtype=float))
    ]
    return min(costs, default=None)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    num_units, num_buckets = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    loads = st.one_of(st.just(np.inf), st.floats(1e-7, 1.2), st.floats(0.01, 0.9))
    load = np.array(draw(st.lists(loads, min_size=num_units * num_buckets, max_size=num_units * num_buckets)))
    price = np.array(draw(st.lists(st.integers(1, 900), min_size=num_units, max_size=num_units))) / 100
    caps = draw(st.lists(st.sampled_from([np.inf, 1.0, 2.0, 4.0]), min_size=num_units, max_size=num_units))
    pools = np.array(draw(st.lists(st.integers(0, num_units - 1), min_size=num_units, max_size=num_units)))
    change = None
    if draw(st.booleans()):
        running = np.array(draw(st.lists(st.integers(0, 3), min_size=num_units, max_size=num_units)), dtype=float)
        change = Change(running, np.full(num_units, 0.8), np.full(num_units, 0.3))
    return Problem(
        price, load.reshape(num_units, num_buckets), pools.astype(np.intp), np.array(caps), draw(st.booleans()), change
    )


@settings(max_examples=70, deadline=None)
@given(problems())
def test_no_other_fleet_is_cheaper(problem: Problem) -> None:
    found, best = solve(problem, LIMITS), by_brute_force(problem)
    if best is None:
        assert found is None or found.mix.counts.max() > MOST
        return
    assert found is not None
    assert found.mix.objective <= best + 1e-6
    assert found.mix.counts.max() > MOST or found.mix.objective == pytest.approx(best)
    assert found.mix.gap == pytest.approx(0, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(problems())
def test_what_two_searches_find_costs_the_same(problem: Problem) -> None:
    ours, handed_over = cheapest(problem, LIMITS), cheapest(problem, Limits(20.0, monotonic, steps=0))
    assert (ours is None) == (handed_over is None)
    if ours is not None and handed_over is not None:
        assert ours.objective == pytest.approx(handed_over.objective, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(problems(), st.integers(0, 2))
def test_the_check_sees_a_fleet_with_one_unit_less_than_it_needs(problem: Problem, which: int) -> None:
    found = solve(problem, LIMITS)
    if found is None or found.mix.counts.sum() == 0:
        return
    used = np.flatnonzero(found.mix.counts > 0)
    less = found.mix.counts.copy()
    less[used[which % len(used)]] -= 1
    load = (np.where(found.shares > 0, problem.load, 0) * found.shares).sum(axis=1)
    if (load > less + 1e-3).any():
        assert list(violations(problem, less, found.shares, {}))


def test_time_that_runs_out_gives_the_best_so_far_with_its_gap() -> None:
    rng = np.random.default_rng(3)
    problem = Problem(rng.uniform(1, 9, 12), rng.uniform(0.2, 3, (12, 60)))
    ticks = iter(range(10_000))
    found = cheapest(problem, Limits(5.0, lambda: float(next(ticks))))
    assert found is not None and 0 < found.gap < 1
    assert found.bound < found.objective
    assert bears(problem, found.counts)


def test_a_bucket_that_takes_next_to_nothing_still_gets_a_unit_that_can_serve_it() -> None:
    found = solve(Problem(np.array([1.0, 30.0]), np.array([[0.4, np.inf], [0.1, 1e-9]])), LIMITS)
    assert found is not None and found.mix.counts[1] == 1


def test_a_rate_of_millions_is_planned_to_a_proven_gap() -> None:
    rng = np.random.default_rng(1)
    problem = Problem(np.array([0.7, 1.01, 3.67, 7.516]), rng.uniform(1, 9, (4, 36)) * 1e6)
    found = solve(problem, Limits(5.0, monotonic))
    assert found is not None and found.mix.gap < 1e-6
