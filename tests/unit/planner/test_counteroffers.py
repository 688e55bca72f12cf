from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import Counteroffer, Intent, Precision, Slo
from maveriq_planner.counteroffers import counteroffers
from maveriq_planner.estimate import fit
from maveriq_planner.explanation import explain
from maveriq_planner.search import measured_space, search
from tests.unit.planner.measurements import FACTS, MODEL, fingerprint, fingerprints, intent

SPACE = measured_space(MODEL, FACTS, fingerprints(), max_pp=3, fit=fit)


def offers(wanted: Intent) -> dict[str, Counteroffer]:
    outcome = search(wanted, SPACE)
    assert not outcome.met
    return {offer.constraint: offer for offer in counteroffers(wanted, SPACE, outcome)}


def changed(wanted: Intent, constraint: str, value: float) -> Intent:
    body: dict[str, Any] = wanted.model_dump()
    section, _, field = constraint.rpartition(".")
    (body[section] if section else body)[field] = value
    return Intent.model_validate(body)


def nearer(offer: Counteroffer) -> float:
    """A little less far from what was wanted: beyond the four digits, or by one."""
    if offer.constraint in ("max_gpus", "replicas"):
        return offer.offered - 1
    return (
        offer.offered
        + (offer.wanted - offer.offered) * 0.01
        + (offer.wanted - offer.offered) / abs(offer.wanted - offer.offered) * 0.002 * offer.offered
    )


REFUSED = st.builds(
    lambda ttft, tpot, e2e, **fields: intent(slo=Slo(ttft_ms=ttft, tpot_ms=tpot, e2e_ms=e2e), **fields),
    st.none() | st.floats(20, 800), st.none() | st.floats(20, 60), st.none() | st.floats(500, 6000),
    input_tokens=st.integers(8, 400), output_tokens=st.integers(2, 100), rate=st.floats(0.05, 8),
    min_accuracy=st.sampled_from([None, 0.98, 1.0]), max_gpus=st.none() | st.integers(1, 3),
    replicas=st.integers(1, 2),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(REFUSED)
def test_every_counteroffer_is_met_and_nothing_nearer_is(wanted: Intent) -> None:
    outcome = search(wanted, SPACE)
    if outcome.met:
        return
    for offer in counteroffers(wanted, SPACE, outcome):
        assert offer.intent == changed(wanted, offer.constraint, offer.offered)
        assert search(offer.intent, SPACE).met, offer
        between = nearer(offer)
        if (between - offer.wanted) * (offer.offered - offer.wanted) > 0:
            assert not search(changed(wanted, offer.constraint, between), SPACE).met, (offer, between)


def test_an_slo_out_of_reach_is_answered_with_the_one_in_reach() -> None:
    found = offers(intent(slo=Slo(tpot_ms=10), rate=0.01))
    best = min(j.estimate.prediction.tpot_ms for j in search(intent(rate=0.01), SPACE).met)
    assert found["slo.tpot_ms"].offered == pytest.approx(best, rel=1e-3)
    assert found.keys() == {"slo.tpot_ms"}


def test_a_rate_out_of_reach_is_answered_with_fewer_requests_or_more_replicas() -> None:
    found = offers(intent(rate=20))
    assert found.keys() == {"workload.request_rate_per_s", "replicas"}
    assert 0.5 < found["workload.request_rate_per_s"].offered < 20
    assert found["replicas"].intent.replicas == found["replicas"].offered > 1


def test_the_floor_of_accuracy_gives_way_to_what_was_measured() -> None:
    wanted = intent(slo=Slo(tpot_ms=44), min_accuracy=1.0, rate=0.01)
    assert offers(wanted)["min_accuracy"].offered == 0.97


def test_max_gpus_gives_way_to_the_fewest_that_do() -> None:
    found = offers(intent(replicas=3, max_gpus=2))
    assert found["max_gpus"].offered == 3


def test_a_workload_beyond_the_context_is_answered_with_one_that_fits() -> None:
    longer = intent(input_tokens=9000, output_tokens=100, rate=0.001)
    assert {c: o.offered for c, o in offers(longer).items()} == {"workload.input_tokens": 8092}
    asked = intent(context_tokens=10_000, rate=0.001)
    assert {c: o.offered for c, o in offers(asked).items()} == {"workload.context_tokens": 8192}


def test_the_longest_request_follows_a_workload_that_had_to_shrink() -> None:
    found = offers(intent(input_tokens=9000, output_tokens=100, context_tokens=9100, rate=0.001))
    assert search(found["workload.input_tokens"].intent, SPACE).met


def told(wanted: Intent) -> str:
    outcome = search(wanted, SPACE)
    return explain(wanted, SPACE, outcome, counteroffers(wanted, SPACE, outcome))


def test_the_reason_names_each_missed_field_and_what_would_do() -> None:
    words = told(intent(slo=Slo(tpot_ms=10), rate=0.01))
    assert words.startswith("none of 48 configurations of smollm2 meets the intent: 48 miss slo.tpot_ms 10 (at best ")
    assert "It would be met with slo.tpot_ms " in words


def test_the_reason_shows_the_nearest_miss_where_no_single_field_helps() -> None:
    words = told(intent(slo=Slo(tpot_ms=5, ttft_ms=5), rate=0.01))
    assert "the nearest, " in words
    assert words.endswith("No change of a single field would be met")


def test_the_reason_for_a_long_workload_names_its_fields() -> None:
    words = told(intent(input_tokens=9000, output_tokens=100))
    assert "workload.input_tokens 9000 + workload.output_tokens 100 is more" in words
    assert "workload.context_tokens 10000 is more" in told(intent(context_tokens=10_000))


def test_an_engine_whose_degrees_divide_no_heads_says_so() -> None:
    space = measured_space(MODEL, FACTS, (fingerprint(tp_degrees=(2,), precision=Precision.FP32),), max_pp=2, fit=fit)
    outcome = search(intent(), space)
    assert counteroffers(intent(), space, outcome) == ()
    assert "tensor-parallel" in explain(intent(), space, outcome, ())
