"""Prices, budgets and throughput come to what a few lines of arithmetic say."""

import pytest

from maveriq.contracts import Candidate, Intent, Objective, Precision, Slo
from maveriq_planner.listing import listing
from maveriq_planner.search import search
from maveriq_planner.space import Space
from tests.unit.planner.measurements import FACTS, Truth, fingerprint, intent, space_of

TRUTH = Truth()
PRICE = 0.05
"""An hour of the one GPU type; the other costs 16 times as much and is three times as fast."""
OLD = fingerprint(TRUTH)
NEW = fingerprint(Truth(layer=0.5, layer_request=0.04, ends=2, ends_request=0.3, flop=2e-8), gpu_type="new")


def space(**fields: float) -> Space:
    return space_of((OLD, NEW), max_pp=1, prices=fields or {"cpu-1t": PRICE, "new": 16 * PRICE})


def stay_ms(slots: int) -> float:
    """A prompt of 128 tokens, as long as those of the others take, and 63 further tokens at a context of 160."""
    return slots * TRUTH.prefill(FACTS.num_layers, 1, 128) + 63 * TRUTH.decode(FACTS.num_layers, slots, 160)


def best(wanted: Intent, where: Space) -> Candidate:
    return listing(search(wanted, where)).candidates[0]


def test_the_cheapest_is_the_least_money_an_hour_of_all_replicas() -> None:
    """One request takes 5.8 s on the old type: a slot of it bears 0.17 a second."""
    assert stay_ms(1) == pytest.approx(5807, abs=1)
    light = best(intent(objective=Objective.MIN_PRICE, rate=0.05), space())
    assert (light.configuration.gpu_type, light.replicas, light.score) == ("cpu-1t", 1, pytest.approx(PRICE))
    four = best(intent(objective=Objective.MIN_PRICE, rate=0.05, replicas=4), space())
    assert four.score == pytest.approx(4 * PRICE)
    # With an SLO that only the new type holds, money follows it; where it is the cheaper one, it is the choice at once.
    fast = best(intent(objective=Objective.MIN_PRICE, rate=0.05, slo=Slo(tpot_ms=25)), space())
    assert (fast.configuration.gpu_type, fast.score) == ("new", pytest.approx(0.8 * fast.replicas))
    turned = best(intent(objective=Objective.MIN_PRICE, rate=0.05), space(**{"cpu-1t": 0.9, "new": 0.8}))
    assert (turned.configuration.gpu_type, turned.score) == ("new", pytest.approx(0.8))


@pytest.mark.parametrize("slots", [1, 8])
def test_a_million_tokens_cost_the_hours_that_full_slots_take_for_them(slots: int) -> None:
    found = listing(search(intent(rate=0.01, gpu_types=("cpu-1t",)), space())).candidates
    (one,) = [c for c in found if c.configuration.max_batch == slots]
    tokens_per_s = slots * 64 / stay_ms(slots) * 1e3
    assert one.prediction.throughput_tokens_per_s == pytest.approx(tokens_per_s, rel=1e-6)
    assert one.prediction.price_per_hour == PRICE
    assert one.prediction.price_per_million_tokens == pytest.approx(1e6 / tokens_per_s / 3600 * PRICE, rel=1e-6)


def test_a_budget_holds_as_many_replicas_as_it_pays_and_not_one_more() -> None:
    """Three times 0.05 are 0.15, though not for a computer."""
    assert best(intent(rate=0.05, replicas=3, max_price_per_hour=0.15), space()).replicas == 3
    lost = listing(search(intent(rate=0.05, replicas=4, max_price_per_hour=0.15), space())).rejected
    cheapest = [r for r in lost if r.configuration.gpu_type == "cpu-1t"]
    assert {(r.constraint, r.wanted) for r in cheapest} == {("max_price_per_hour", 0.15)}
    assert [r.predicted for r in cheapest] == pytest.approx([0.2] * len(cheapest))


def test_the_most_throughput_a_budget_pays_for_is_that_many_replicas_with_every_slot_busy() -> None:
    """0.2 an hour pays for four of the old type, and for none of the new one."""
    wanted = intent(objective=Objective.MAX_THROUGHPUT, rate=0.05, max_price_per_hour=0.2)
    four = best(wanted, space())
    assert (four.configuration.gpu_type, four.configuration.max_batch, four.replicas) == ("cpu-1t", 8, 4)
    assert -four.score == pytest.approx(4 * 8 * 64 / stay_ms(8) * 1e3, rel=1e-6)
    alone = best(intent(objective=Objective.MAX_THROUGHPUT, rate=0.05, replicas=1, gpu_types=("cpu-1t",)), space())
    assert -alone.score == pytest.approx(8 * 64 / stay_ms(8) * 1e3, rel=1e-6)


def test_an_slo_lowers_the_goodput_to_the_rate_that_still_keeps_it() -> None:
    """Of eight slots little more than one may be taken at once: another's prompt alone adds 35 ms to each token.

    One slot keeps that SLO at any rate, so it has more throughput than eight.
    """
    limit, prompt = 64.0, TRUTH.prefill(FACTS.num_layers, 1, 128)
    slo = Slo(tpot_ms=limit)
    wanted = intent(objective=Objective.MAX_THROUGHPUT, rate=0.01, replicas=1, gpu_types=("cpu-1t",), slo=slo)
    found = listing(search(wanted, space())).candidates
    by_slots = {c.configuration.max_batch: c for c in found if c.configuration.precision is Precision.FP32}

    def tpot_ms(batch: int) -> float:
        return ((batch - 1) * prompt + 63 * TRUTH.decode(FACTS.num_layers, batch, 160)) / 63

    batch = 1 + (limit - tpot_ms(1)) / (tpot_ms(2) - tpot_ms(1))
    per_ms = (batch - 1) / (prompt + 63 * limit)  # an arrival finds what Little says, and is one more itself
    assert -by_slots[8].score == pytest.approx(per_ms * 1e3 * 64, rel=1e-3)
    assert -by_slots[1].score == pytest.approx(64 / stay_ms(1) * 1e3, rel=1e-3)
    assert found[0] == by_slots[1]
