"""Who deploys is offered what the GPUs there are would hold; who plans is offered all that would be met."""

import pytest

from maveriq.contracts import Admission, Fragment, Intent, Slo
from maveriq_planner.counteroffers import counteroffers
from maveriq_planner.listing import listing
from maveriq_planner.reach import BEYOND, within_reach
from maveriq_planner.room import fitting_first
from maveriq_planner.search import search
from tests.unit.planner.measurements import FACTS, MODEL, fingerprints, intent, space_of

SPACE = space_of(fingerprints(), max_pp=3)
GIB = 2**30


def cluster(*free_bytes: int, held_bytes: int = 0) -> tuple[Fragment, ...]:
    """One node's."""
    return tuple(
        Fragment(node="n", gpu=f"n/{at}", engine="torch", gpu_type="cpu-1t", free_bytes=free, held_bytes=held_bytes)
        for at, free in enumerate(free_bytes)
    )


def offered(wanted: Intent, fragments: tuple[Fragment, ...], *, dry_run: bool = False) -> tuple[dict[str, Intent], str]:
    admission = Admission(intent=wanted, model=MODEL, dry_run=dry_run, fragments=fragments)
    outcome = search(wanted, SPACE)
    assert not len(outcome.met)
    offers, words = within_reach(admission, SPACE, outcome)
    return {offer.constraint: offer.intent for offer in offers}, words


@pytest.mark.parametrize(
    "wanted",
    [
        intent(slo=Slo(ttft_ms=1)), intent(slo=Slo(tpot_ms=0.1)), intent(slo=Slo(e2e_ms=1)),
        intent(rate=300, replicas=1), intent(rate=300, max_gpus=1), intent(slo=Slo(ttft_ms=1, tpot_ms=0.1)),
    ],
)  # fmt: skip
def test_what_a_deploy_is_offered_has_a_seat_on_the_gpus_there_are(wanted: Intent) -> None:
    fragments = cluster(GIB, GIB // 2)
    found, words = offered(wanted, fragments)
    assert found and not words
    for asked in found.values():
        _, num_fitting = fitting_first(listing(search(asked, SPACE)).candidates, FACTS.num_layers, fragments)
        assert num_fitting


def test_replicas_that_no_gpus_hold_are_offered_to_who_plans_alone() -> None:
    wanted = intent(rate=300, replicas=1)
    assert "replicas" in offered(wanted, cluster(GIB), dry_run=True)[0]
    assert "replicas" not in offered(wanted, cluster(GIB))[0]


def test_what_deployments_hold_comes_back_and_so_counts_as_there() -> None:
    wanted = intent(slo=Slo(ttft_ms=1))
    assert offered(wanted, cluster(1000, held_bytes=GIB)) == offered(wanted, cluster(GIB))


def test_where_nothing_that_would_be_met_has_a_seat_all_is_offered_and_that_is_said() -> None:
    wanted = intent(slo=Slo(ttft_ms=1))
    every = {offer.constraint: offer.intent for offer in counteroffers(wanted, SPACE, search(wanted, SPACE))}
    assert offered(wanted, cluster(1000)) == (every, BEYOND)
    assert offered(wanted, ()) == (every, "")  # nobody knows what there is
