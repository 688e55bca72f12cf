"""An intent that nothing meets is offered the nearest that something does, each with one limit relaxed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import Counteroffer, Intent, Objective, Precision, Slo
from maveriq_planner.counteroffers import counteroffers
from maveriq_planner.explanation import explain
from maveriq_planner.search import search
from maveriq_planner.space import Space
from tests.unit.planner.measurements import Truth, fingerprint, fingerprints, intent, space_of

PRICES = {"cpu-1t": 0.05, "gpu": 0.8}
FAST = fingerprint(Truth(layer=0.2, layer_request=0.02, ends=2, flop=1e-9), gpu_type="gpu")
SPACE = space_of((*fingerprints(), FAST), max_pp=3, prices=PRICES)


def offers(wanted: Intent, space: Space = SPACE) -> dict[str, Counteroffer]:
    outcome = search(wanted, space)
    assert not len(outcome.met)
    return {offer.constraint: offer for offer in counteroffers(wanted, space, outcome)}


def changed(wanted: Intent, constraint: str, value: object) -> Intent:
    body: dict[str, Any] = wanted.model_dump()
    section, _, field = constraint.rpartition(".")
    (body[section] if section else body)[field] = value
    return Intent.model_validate(body)


def nearer(offer: Counteroffer) -> float:
    """A little less far from what was wanted: beyond the three digits, a tenth of a percentile, or by one."""
    towards = 1 if offer.wanted > offer.offered else -1
    if offer.constraint in ("max_gpus", "replicas", "workload.concurrency"):
        return offer.offered + towards
    if offer.constraint == "slo.percentile":
        return offer.offered + 0.2 * towards
    return offer.offered + (offer.wanted - offer.offered) * 0.01 + towards * 0.02 * offer.offered


REFUSED = st.builds(
    lambda ttft, tpot, e2e, percentile, **fields: intent(
        slo=Slo(ttft_ms=ttft, tpot_ms=tpot, e2e_ms=e2e, percentile=percentile), **fields
    ),
    st.none() | st.floats(20, 800), st.none() | st.floats(5, 60), st.none() | st.floats(300, 6000),
    st.sampled_from([None, None, 75.0, 99.0]),
    input_tokens=st.integers(8, 400), output_tokens=st.integers(2, 100), rate=st.floats(0.05, 8),
    min_accuracy=st.sampled_from([None, 0.98, 1.0]), max_gpus=st.none() | st.integers(1, 5),
    replicas=st.none() | st.integers(1, 3), max_price_per_hour=st.none() | st.floats(0.04, 2),
    gpu_types=st.sampled_from([None, ("cpu-1t",), ("gpu",), ("other",)]),
    precisions=st.sampled_from([None, (Precision.INT4,), (Precision.BF16,)]),
    concurrency=st.none() | st.integers(1, 20),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(REFUSED)
def test_every_counteroffer_is_met_and_nothing_nearer_is(wanted: Intent) -> None:
    outcome = search(wanted, SPACE)
    if len(outcome.met):
        return
    for offer in counteroffers(wanted, SPACE, outcome):
        assert Intent.model_validate(offer.intent.model_dump()) == offer.intent
        assert len(search(offer.intent, SPACE).met), offer
        if offer.words:
            continue
        assert offer.intent == changed(wanted, offer.constraint, offer.offered)
        between = nearer(offer)
        if (between - offer.wanted) * (offer.offered - offer.wanted) > 0:
            assert not len(search(changed(wanted, offer.constraint, between), SPACE).met), (offer, between)


def test_an_slo_out_of_reach_is_answered_with_the_one_in_reach() -> None:
    space = space_of(max_pp=3)
    found = offers(intent(slo=Slo(tpot_ms=10), rate=0.01), space)
    judged = search(intent(rate=1e-6), space).judged
    assert judged is not None
    assert found["slo.tpot_ms"].offered == pytest.approx(judged.latencies.tpot_ms.min(), rel=1e-2)
    assert found.keys() == {"slo.tpot_ms"}


def test_an_slo_by_percentile_may_give_way_in_its_limit_or_in_its_percentile() -> None:
    slo = Slo(tpot_ms=10.5, percentile=99)
    found = offers(intent(slo=slo, rate=2.5, replicas=1))
    assert found["slo.percentile"].offered < 99
    assert found["slo.tpot_ms"].offered > 10.5
    assert found["workload.request_rate_per_s"].offered < 2.5
    assert found["replicas"].offered == 2


def test_a_rate_out_of_reach_is_answered_with_fewer_requests_or_more_replicas() -> None:
    found = offers(intent(rate=20, replicas=1))
    assert found.keys() == {"workload.request_rate_per_s", "replicas"}
    assert 0.5 < found["workload.request_rate_per_s"].offered < 20
    assert found["replicas"].intent.replicas == found["replicas"].offered > 1


def test_a_bound_on_requests_in_flight_gives_way_to_what_brings_the_rate_or_keeps_the_latency() -> None:
    more = offers(intent(rate=3, concurrency=1, replicas=1))
    assert more["workload.concurrency"].offered > 1
    slow = intent(rate=200, concurrency=8, replicas=1, slo=Slo(tpot_ms=12))
    assert "workload.concurrency" not in offers(slow)


def test_the_floor_of_accuracy_gives_way_to_what_was_measured_or_to_what_was_not() -> None:
    found = offers(intent(slo=Slo(tpot_ms=44), min_accuracy=1.0, rate=0.01), space_of(max_pp=3))
    assert found["min_accuracy"].offered == 0.97
    assert found["allow_unmeasured_accuracy"].intent.allow_unmeasured_accuracy


def test_max_gpus_and_the_budget_give_way_to_the_fewest_that_do() -> None:
    found = offers(intent(replicas=3, max_gpus=2))
    assert found["max_gpus"].offered == 3
    assert found["replicas"].offered == 2
    assert offers(intent(replicas=3, max_price_per_hour=0.1))["max_price_per_hour"].offered == pytest.approx(0.15)


def test_gpu_types_and_precisions_give_way_to_the_one_that_would_be_best() -> None:
    found = offers(intent(gpu_types=("L4",)))
    assert found["gpu_types"].intent.gpu_types in (("L4", "gpu"), ("L4", "cpu-1t"))
    assert "among them" in found["gpu_types"].words
    slow = offers(intent(gpu_types=("cpu-1t",), slo=Slo(tpot_ms=10)))
    assert slow["gpu_types"].intent.gpu_types == ("cpu-1t", "gpu")
    assert offers(intent(precisions=(Precision.FP8,)))["precisions"].intent.precisions is not None


def test_a_workload_beyond_the_context_is_answered_with_one_that_fits() -> None:
    longer = intent(input_tokens=9000, output_tokens=100, rate=0.001)
    assert {c: o.offered for c, o in offers(longer).items()} == {"workload.input_tokens": 8092}
    asked = intent(context_tokens=10_000, rate=0.001)
    assert {c: o.offered for c, o in offers(asked).items()} == {"workload.context_tokens": 8192}


def test_the_longest_request_follows_a_workload_that_had_to_shrink() -> None:
    found = offers(intent(input_tokens=9000, output_tokens=100, context_tokens=9100, rate=0.001))
    assert len(search(found["workload.input_tokens"].intent, SPACE).met)


def told(wanted: Intent, space: Space = SPACE) -> str:
    outcome = search(wanted, space)
    return explain(wanted, space, outcome, counteroffers(wanted, space, outcome))


def test_the_reason_names_each_missed_field_and_what_would_do() -> None:
    words = told(intent(slo=Slo(tpot_ms=10), rate=0.01), space_of(max_pp=3))
    assert words.startswith("none of 48 configurations of smollm2 meets the intent: 48 miss slo.tpot_ms 10 (at best ")
    assert "It would be met with slo.tpot_ms " in words


def test_the_reason_names_the_percentile_that_was_asked_for() -> None:
    assert "at percentile 99 at best" in told(intent(slo=Slo(ttft_ms=1, percentile=99)))


def test_the_reason_shows_the_nearest_miss_where_no_single_field_helps() -> None:
    words = told(intent(slo=Slo(tpot_ms=1, ttft_ms=1), rate=0.01))
    assert "the nearest, " in words
    assert "No change of a single field would be met; it would with slo.ttft_ms " in words


def test_where_no_single_field_helps_all_that_the_nearest_misses_is_offered_at_once() -> None:
    (made,) = offers(intent(slo=Slo(tpot_ms=1, ttft_ms=1), rate=0.01)).values()
    assert made.constraint == "slo.ttft_ms and slo.tpot_ms"
    assert made.words == f"slo.ttft_ms {made.intent.slo.ttft_ms:g} and slo.tpot_ms {made.intent.slo.tpot_ms:g}"
    assert len(search(made.intent, SPACE).met)


@pytest.mark.parametrize(
    "asked",
    [
        {"precisions": (Precision.FP8,)}, {"gpu_types": ("other",)}, {"max_price_per_hour": 0.01},
        {"precisions": (Precision.FP8,), "gpu_types": ("other",)},
    ],
)  # fmt: skip
def test_what_is_allowed_or_to_have_a_price_gives_way_beside_what_else_is_missed(asked: dict[str, Any]) -> None:
    space = space_of(fingerprints(), max_pp=3)  # without prices
    (made,) = offers(intent(slo=Slo(ttft_ms=0.1), **asked), space).values()
    assert made.constraint == " and ".join([*sorted(asked), "slo.ttft_ms"])
    assert len(search(made.intent, space).met)


def test_where_gpus_and_latency_give_way_together_no_request_waits_in_an_endless_line() -> None:
    alone = offers(intent(slo=Slo(e2e_ms=1)))["slo.e2e_ms"].offered
    (made,) = offers(intent(slo=Slo(e2e_ms=1), rate=20, max_gpus=1)).values()
    assert made.constraint == "max_gpus and slo.e2e_ms"
    assert made.intent.slo.e2e_ms is not None and made.intent.slo.e2e_ms < 4 * alone
    assert len(search(made.intent, SPACE).met)


def test_the_reason_says_how_to_measure_an_accuracy_that_nobody_did() -> None:
    words = told(intent(min_accuracy=0.9, precisions=(Precision.INT4,)))
    assert "miss min_accuracy 0.9 (int4 was never measured: maveriq accuracy smollm2 measures it)" in words
    both = told(intent(min_accuracy=0.98, precisions=(Precision.INT4, Precision.INT8)))
    assert "(at best 0.97; int4 was never measured: " in both


def test_the_reason_for_a_precision_that_is_registered_and_was_not_measured_says_so() -> None:
    words = told(intent(precisions=(Precision.INT8,)), space_of((fingerprint(),)))
    assert "precisions allows only int8: " in words
    assert "int8, int4 on cpu-1t cannot be predicted: nothing was measured" in words


def test_the_reason_for_a_long_workload_names_its_fields() -> None:
    words = told(intent(input_tokens=9000, output_tokens=100))
    assert "workload.input_tokens 9000 + workload.output_tokens 100 is more" in words
    assert "workload.context_tokens 10000 is more" in told(intent(context_tokens=10_000))


def test_the_reason_names_the_gpu_types_and_precisions_that_are_known() -> None:
    words = told(intent(gpu_types=("L4",)))
    assert "gpu_types allows only L4; the GPU types that were measured are cpu-1t, gpu; maveriq calibrate" in words
    assert "did you mean cpu-1t?" in told(intent(gpu_types=("CPU-1T",)))
    words = told(intent(precisions=(Precision.FP8,)))
    assert words.startswith("precisions allows only fp8; smollm2 is registered with no such variant: ")
    assert "fp32, bf16, int8, int4" in words


def test_the_reason_names_the_setting_where_prices_are_missing() -> None:
    unpriced = space_of()
    for wanted in (intent(objective=Objective.MIN_PRICE), intent(max_price_per_hour=3)):
        assert 'no price is known for cpu-1t: give the planner MAVERIQ_PRICES="cpu-1t=0.80"' in told(wanted, unpriced)
    cheap = offers(intent(objective=Objective.MIN_PRICE), unpriced)
    assert cheap["objective"].intent.objective is Objective.MIN_GPU_COST
    assert offers(intent(max_price_per_hour=3), unpriced)["max_price_per_hour"].intent.max_price_per_hour is None


def test_the_reason_says_what_keeps_a_variant_from_being_predicted() -> None:
    words = told(intent(), space_of((fingerprint(kv_precision=Precision.INT8),)))
    start = "nothing can be predicted for smollm2: fp32, bf16, int8, int4 on cpu-1t cannot be predicted: nothing was "
    assert words.startswith(start)
    assert "maveriq calibrate measures" in words


def test_an_engine_whose_degrees_divide_no_heads_says_so() -> None:
    space = space_of((fingerprint(tp_degrees=(2,), precision=Precision.FP32),), max_pp=2)
    outcome = search(intent(), space)
    assert counteroffers(intent(), space, outcome) == ()
    assert "tensor-parallel" in explain(intent(), space, outcome, ())
