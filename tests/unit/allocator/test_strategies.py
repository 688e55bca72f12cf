"""What each strategy prefers."""

import numpy as np
import pytest

from maveriq.contracts import Strategy
from maveriq_allocator.strategies import Preference

SHARES = np.array([0.0, 0.2, 0.6, 0.7, 0.9, 1.0])
FREE = np.array([100, 90, 80, 70, 60, 50], dtype=np.int64)


def order(preference: Preference) -> list[float]:
    return [float(SHARES[at]) for at in np.argsort(preference.costs(FREE, SHARES), kind="stable")]


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        (Preference(Strategy.LEAST_LOADED), [0.0, 0.2, 0.6, 0.7, 0.9, 1.0]),
        (Preference(Strategy.PACKING), [0.9, 0.7, 0.6, 0.2, 0.0, 1.0]),
        (Preference(Strategy.HYBRID), [0.6, 0.2, 0.0, 0.7, 0.9, 1.0]),
        (Preference(Strategy.HYBRID, threshold=0.1), [0.0, 0.2, 0.6, 0.7, 0.9, 1.0]),
        (Preference(Strategy.BEST_FIT), [1.0, 0.9, 0.7, 0.6, 0.2, 0.0]),
    ],
)
def test_a_strategy_orders_all_gpus_and_leaves_none_out(preference: Preference, expected: list[float]) -> None:
    assert order(preference) == expected


@pytest.mark.parametrize("strategy", list(Strategy))
def test_of_equal_utilisation_the_smaller_fragment_is_preferred_and_of_equal_fragments_the_strategys(
    strategy: Strategy,
) -> None:
    costs = Preference(strategy).costs(np.array([7, 5], dtype=np.int64), np.array([0.5, 0.5]))
    assert costs[1] < costs[0]
    equal = Preference(strategy).costs(np.array([7, 7], dtype=np.int64), np.array([0.2, 0.6]))
    assert (equal[0] < equal[1]) == (strategy in (Strategy.LEAST_LOADED, Strategy.BEST_FIT))


def test_costs_of_the_largest_replica_add_up_without_overflow() -> None:
    for strategy in Strategy:
        costs = Preference(strategy).costs(np.full(64, 2**38, dtype=np.int64), np.full(64, 1.0))
        assert int(costs.sum()) == sum(int(cost) for cost in costs) < 2**61
