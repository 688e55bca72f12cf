"""GPU types share an intent's requests where that is cheaper than one type; each part is predicted for its share."""

from math import ceil
from time import monotonic
from typing import Any

import pytest

from maveriq.contracts import Fragment, Histogram, Intent, Objective, PlannedFleet, Slo, Workload
from maveriq_planner.fleets import fleet_of
from maveriq_planner.search import search
from maveriq_planner.space import Space
from tests.unit.planner.measurements import MODEL, Truth, fingerprint, space_of

CHEAP, FAST = "cpu-1t", "new"
PRICES = {CHEAP: 0.05, FAST: 0.4}
TRUTH = Truth()
OLD = fingerprint(TRUTH)
NEW = fingerprint(Truth(layer=0.5, layer_request=0.04, ends=2, ends_request=0.3, flop=2e-8), gpu_type=FAST)
SLO = Slo(ttft_ms=4000)
"""The cheap type reads a prompt of 64 tokens in 1.4 s and one of 400 in 9 s."""


def free(**counts: int) -> tuple[Fragment, ...]:
    named = {"cheap": CHEAP, "fast": FAST}
    return tuple(
        Fragment(node="n1", gpu=f"{kind}:{at}", engine="torch", gpu_type=named[kind], free_bytes=2 * 2**30)
        for kind, count in counts.items()
        for at in range(count)
    )


ROOM = free(cheap=16, fast=16)


def histogram(short: float = 0.9, rate: float = 3.0) -> Histogram:
    return Histogram(
        input_edges=(64, 400), output_edges=(32,), distribution=((short,), (1 - short,)), request_rate_per_s=rate
    )


def wanted(asked: Histogram | None = None, **fields: Any) -> Intent:
    fields = {"objective": Objective.MIN_PRICE, "slo": SLO} | fields
    return Intent(model=MODEL.name, workload=Workload(histogram=asked or histogram()), **fields)


def space(**prices: float) -> Space:
    return space_of((OLD, NEW), max_pp=1, prices=prices or PRICES)


def fleet(intent: Intent, where: Space | None = None, room: tuple[Fragment, ...] = ROOM) -> PlannedFleet | None:
    return fleet_of(intent, where or space(), room, monotonic)


@pytest.fixture(scope="module")
def found() -> PlannedFleet:
    made = fleet(wanted())
    assert made is not None
    return made


def test_short_requests_are_the_cheap_types_and_long_ones_the_fast_types(found: PlannedFleet) -> None:
    assert set(found.gpu_types) == {CHEAP, FAST}
    first = {one.input_up_to: one.served_by[0] for one in found.routes}
    assert (first[64].gpu_type, first[400].gpu_type, first[400].share) == (CHEAP, FAST, 1.0)
    assert [one.share for one in found.routes] == pytest.approx([0.9, 0.1])
    for one in found.routes:
        assert {served.gpu_type for served in one.served_by} == {CHEAP, FAST}
        assert sum(served.share for served in one.served_by) == pytest.approx(1)


def test_it_costs_what_its_replicas_cost_and_less_than_the_best_type_alone(found: PlannedFleet) -> None:
    price = sum(PRICES[part.configuration.gpu_type] * part.replicas for part in found.parts)
    assert found.score == found.price_per_hour == pytest.approx(price)
    assert found.bound is not None and found.bound <= found.score + 1e-9
    assert found.single_score is not None
    assert found.score < found.single_score


def test_each_part_keeps_the_slo_for_its_share_and_holds_the_longest_request(found: PlannedFleet) -> None:
    for part in found.parts:
        assert part.prediction.ttft_ms <= 4000
        assert part.configuration.context_tokens >= 432
        assert part.mixable == ()


def test_no_part_is_given_more_than_it_bears(found: PlannedFleet) -> None:
    """Alone, each part's replicas sustain its share: the planner's own search says so."""
    for part in found.parts:
        kind = part.configuration.gpu_type
        shares = [(one, s.share) for one in found.routes for s in one.served_by if s.gpu_type == kind and s.share > 0]
        rate = sum(one.share * share for one, share in shares) * 3.0
        mean = sum(one.input_up_to * one.share * share for one, share in shares) * 3.0 / rate
        sizes = Workload(input_tokens=ceil(mean), output_tokens=32, request_rate_per_s=rate, context_tokens=432)
        asked = wanted().model_copy(update={"gpu_types": (kind,), "workload": sizes})
        outcome = search(asked, space())
        assert outcome.judged is not None
        assert outcome.judged.replicas[outcome.met].min() <= part.replicas


@pytest.mark.parametrize(
    "why",
    [
        {"objective": Objective.MIN_LATENCY}, {"objective": Objective.MAX_THROUGHPUT}, {"replicas": 3},
        {"max_gpus": 1}, {"max_price_per_hour": 0.01},
    ],
)  # fmt: skip
def test_there_is_none_where_the_intent_rules_it_out(why: dict[str, Any]) -> None:
    assert fleet(wanted(**why)) is None


def test_there_is_none_without_a_histogram() -> None:
    plain = wanted().model_copy(update={"workload": Workload(input_tokens=128, output_tokens=32)})
    assert fleet(plain) is None


def test_where_one_type_is_as_good_it_serves_all_sizes(found: PlannedFleet) -> None:
    for alone, kind in (
        (fleet(wanted(histogram(short=1.0))), CHEAP),
        (fleet(wanted(), space(**{CHEAP: 0.4, FAST: 0.05})), FAST),
        (fleet(wanted(gpu_types=(FAST,))), FAST),
    ):
        assert alone is not None
        assert not alone.is_shared
        assert alone.gpu_types == (kind,)
        assert alone.score == alone.single_score
        assert all([served.gpu_type for served in one.served_by] == [kind] for one in alone.routes)


def test_it_is_planned_over_what_is_free() -> None:
    assert fleet(wanted(), room=()) is None
    assert fleet(wanted(), room=free(cheap=16)) is None
    little = fleet(wanted(), room=free(cheap=2, fast=16))
    assert little is not None
    assert little.gpu_types == (FAST,)
    busy = fleet(wanted(), room=free(cheap=4, fast=1))
    assert busy is not None
    assert {part.configuration.gpu_type: part.replicas for part in busy.parts} == {CHEAP: 4, FAST: 1}


def test_a_replica_of_two_gpus_takes_both_of_one_node() -> None:
    """As the allocator places it: five nodes of one GPU hold no pipeline of two stages."""
    one_stage = space()
    several = space_of((OLD, NEW), max_pp=2, prices=PRICES)
    needed = one_stage.facts.layer_params * 4 * 20 + one_stage.facts.embedding_params * 4
    small = [one.model_copy(update={"free_bytes": int(needed)}) for one in free(cheap=8, fast=8)]
    apart = tuple(one.model_copy(update={"node": one.gpu}) for one in small)
    together = fleet(wanted(), several, tuple(small))
    assert together is not None
    assert {part.configuration.pp for part in together.parts} == {2}
    assert fleet(wanted(), several, apart) is None


def test_least_memory_counts_bytes_and_takes_no_more_slots_than_the_load_needs() -> None:
    lean = fleet(wanted(histogram(rate=0.01), objective=Objective.MIN_MEMORY))
    assert lean is not None
    assert lean.score * 2**30 == pytest.approx(
        sum(p.prediction.memory_bytes * p.replicas for p in lean.parts), rel=1e-3
    )
    assert [part.configuration.max_batch for part in lean.parts] == [1]


@pytest.mark.parametrize("objective", [Objective.MIN_COST, Objective.MIN_GPU_COST])
def test_latency_times_what_is_held_is_of_the_mean_request_and_no_worse_than_one_type(objective: Objective) -> None:
    made = fleet(wanted(histogram(short=0.99, rate=6.0), objective=objective))
    assert made is not None
    e2e_s = [part.prediction.e2e_ms / 1e3 for part in made.parts]
    shares = [sum(r.share * s.share for r in made.routes for s in r.served_by if s.gpu_type == kind)
              for kind in made.gpu_types]  # fmt: skip
    gib = [part.prediction.memory_bytes / 2**30 for part in made.parts]
    each = gib if objective is Objective.MIN_COST else [float(part.configuration.num_gpus) for part in made.parts]
    held = sum(one * part.replicas for one, part in zip(each, made.parts, strict=True))
    mean_s = sum(share * s for share, s in zip(shares, e2e_s, strict=True))
    assert made.score == pytest.approx(mean_s * held, rel=1e-3)
    assert made.single_score is not None
    assert made.score <= made.single_score * (1 + 1e-6)
    assert made.bound is None
