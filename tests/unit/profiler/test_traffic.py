"""What counts as asked otherwise than planned: faster or for other sizes, by more than chance."""

from uuid import UUID

import pytest

from maveriq.contracts import Histogram, Workload
from maveriq_profiler.traffic import LEAST_REQUESTS, drift, is_calm

ID = UUID(int=5)

SIZES = Histogram(input_edges=(100, 1000), output_edges=(50,), distribution=((0.75,), (0.25,)), request_rate_per_s=2.0)
WORKLOAD = Workload(histogram=SIZES)
OVER_S = 600.0


def counts(short: int, long: int) -> dict[tuple[int, int], int]:
    return {(0, 0): short, (1, 0): long}


@pytest.mark.parametrize(
    ("seen", "drifts", "calm"),
    [
        (counts(900, 300), False, True),  # as planned
        (counts(1350, 450), True, False),  # half as many again
        (counts(1035, 345), False, False),  # 15 % more: neither
        (counts(300, 100), False, True),  # a third of the rate: it costs too much, and is no emergency
        (counts(600, 600), True, False),  # a quarter of them longer
        (counts(40, 50), False, True),  # too few to say
        (counts(0, LEAST_REQUESTS), True, False),
    ],
)
def test_what_drifts_and_what_is_calm_again(seen: dict[tuple[int, int], int], drifts: bool, calm: bool) -> None:
    found = drift(ID, WORKLOAD, SIZES, seen, OVER_S)
    assert (found is not None) == drifts
    assert is_calm(WORKLOAD, SIZES, seen, OVER_S) == calm


def test_what_was_served_is_told_by_the_buckets_that_were_planned_for() -> None:
    found = drift(ID, WORKLOAD, SIZES, counts(600, 600), OVER_S)
    assert found is not None
    assert found.moved == pytest.approx(0.25)
    assert found.planned_per_s == found.served.request_rate_per_s == 2.0
    assert Histogram.model_validate(found.served.model_dump()).distribution == ((0.5,), (0.5,))


def test_a_few_more_of_few_are_chance() -> None:
    rare = Workload(histogram=SIZES.model_copy(update={"request_rate_per_s": 0.14}))
    assert drift(ID, rare, SIZES, counts(82, 28), OVER_S) is None
