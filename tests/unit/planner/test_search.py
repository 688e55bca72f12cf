"""The search ranks as brute force does, and says why the others lost."""

from collections import Counter
from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import Candidate, Configuration, Intent, Objective, Precision, Slo
from maveriq_planner.listing import listing
from maveriq_planner.search import Outcome, search
from maveriq_planner.shown import configurations
from maveriq_planner.workloads import context_tokens
from tests.unit.planner import reference
from tests.unit.planner.measurements import (
    FACTS,
    Truth,
    fingerprint,
    fingerprints,
    intent,
    samples,
    space_of,
)

DEAR = fingerprint(Truth(layer=0.4, ends=3), gpu_type="gpu", tp_degrees=(1, 3))
UNPRICED = fingerprint(Truth(layer=0.5), gpu_type="old")
SPACE = space_of((*fingerprints(), DEAR, UNPRICED), max_pp=3, prices={"cpu-1t": 0.05, "gpu": 0.8})


def key(c: Configuration) -> reference.Key:
    return (c.gpu_type, c.variant, c.tp, c.pp, c.max_batch)


def keys(outcome: Outcome, chosen: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[reference.Key]:
    return (
        []
        if outcome.judged is None
        else [key(Configuration.model_validate(row)) for row in configurations(outcome.judged, chosen)]
    )


def some(low: float, high: float) -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(low, high)


INTENTS = st.builds(
    lambda ttft, tpot, e2e, percentile, **fields: intent(
        slo=Slo(ttft_ms=ttft, tpot_ms=tpot, e2e_ms=e2e, percentile=percentile), **fields
    ),
    some(100, 3000), some(10, 120), some(1500, 9000), st.sampled_from([None, None, 50.0, 90.0, 99.0]),
    objective=st.sampled_from([o for o in Objective if o is not Objective.MAX_THROUGHPUT]),
    input_tokens=st.integers(1, 600), output_tokens=st.integers(1, 200), rate=st.floats(0.01, 4),
    min_accuracy=st.sampled_from([None, 0.0, 0.97, 0.98, 1.0]), max_gpus=st.none() | st.integers(1, 30),
    replicas=st.none() | st.integers(1, 3), allow_unmeasured_accuracy=st.booleans(),
    max_price_per_hour=some(0.05, 5.0), gpu_types=st.sampled_from([None, None, ("gpu",), ("cpu-1t", "old")]),
    precisions=st.sampled_from([None, None, (Precision.FP32,), (Precision.INT4, Precision.INT8)]),
    concurrency=st.none() | st.integers(1, 40),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(INTENTS)
def test_the_search_finds_exactly_what_brute_force_finds_best_first(wanted: Intent) -> None:
    outcome = search(wanted, SPACE)
    everything = {one.key: one for one in reference.every(wanted, SPACE)}
    met: dict[reference.Key, tuple[float, int]] = {}
    for one in everything.values():
        number = reference.replicas(one, wanted)
        if number is not None and reference.meets(one, wanted, number):
            met[one.key] = (reference.scored(one, wanted, number), number)
    ranked = keys(outcome, outcome.met)
    assert set(ranked) == met.keys()
    assert set(keys(outcome, outcome.missed)) == everything.keys() - met.keys()
    if outcome.judged is None:
        return
    scores = outcome.judged.score[outcome.met]
    assert scores == pytest.approx([met[k][0] for k in ranked])
    assert scores.tolist() == sorted(scores)
    assert outcome.judged.replicas[outcome.met].tolist() == [met[k][1] for k in ranked]
    excesses = outcome.judged.excess[outcome.missed].tolist()
    assert excesses == sorted(excesses)


@settings(max_examples=25, deadline=None)
@given(INTENTS)
def test_the_front_is_what_brute_force_finds_that_nothing_beats(wanted: Intent) -> None:
    outcome = search(wanted, SPACE)
    if outcome.judged is None or not len(outcome.met):
        assert listing(outcome).front == ()
        return
    j = outcome.judged
    priced = not any(isnan(j.price_per_hour[i]) for i in outcome.met)
    points = {
        k: (
            round(float(j.latencies.e2e_ms[i]), 6), float(j.memory_bytes[i]),  # a nanosecond is rounding
            float(j.price_per_hour[i] if priced else j.num_gpus[i]),
            -1.0 * (-1.0 if isnan(j.columns.accuracy[i]) else float(j.columns.accuracy[i])),
        )
        for k, i in zip(keys(outcome, outcome.met), outcome.met, strict=True)
    }  # fmt: skip
    unbeaten = {
        point
        for point in points.values()
        if not any(o != point and all(a <= b for a, b in zip(o, point, strict=True)) for o in points.values())
    }
    shown = [points[key(c.configuration)] for c in listing(outcome).front]
    assert set(shown) <= unbeaten
    assert len(shown) == len(set(shown)) == min(64, len(unbeaten))
    assert [point[0] for point in shown] == sorted(point[0] for point in shown)


@settings(max_examples=25, deadline=None)
@given(INTENTS)
def test_each_rejection_says_what_was_missed_and_by_how_much(wanted: Intent) -> None:
    everything = {one.key: one for one in reference.every(wanted, SPACE)}
    percentile = wanted.slo.percentile is not None
    for rejection in listing(search(wanted, SPACE)).rejected:
        p, one = rejection.prediction, everything[key(rejection.configuration)]
        latency = {
            "slo.ttft_ms": (wanted.slo.ttft_ms, p.ttft_percentile_ms if percentile else p.ttft_ms),
            "slo.tpot_ms": (wanted.slo.tpot_ms, p.tpot_percentile_ms if percentile else p.tpot_ms),
            "slo.e2e_ms": (wanted.slo.e2e_ms, p.e2e_percentile_ms if percentile else p.e2e_ms),
            "min_accuracy": (wanted.min_accuracy, p.accuracy),
        }
        if rejection.constraint in latency:
            assert (rejection.wanted, rejection.predicted) == latency[rejection.constraint]
        elif rejection.constraint == "max_gpus":
            assert rejection.predicted is not None
            assert rejection.predicted % one.num_gpus == 0
            assert rejection.predicted > rejection.wanted == wanted.max_gpus
        elif rejection.constraint == "max_price_per_hour":
            assert rejection.predicted is None or rejection.predicted > rejection.wanted
            assert (rejection.predicted is None) == (one.price is None)
        else:
            assert rejection.constraint == "workload.request_rate_per_s"
            assert rejection.predicted is not None
            assert rejection.predicted <= wanted.workload.request_rate_per_s


@settings(max_examples=15, deadline=None)
@given(INTENTS)
def test_what_is_listed_survives_the_contracts_own_checks(wanted: Intent) -> None:
    outcome = search(wanted, SPACE)
    for candidate in (*listing(outcome).candidates[:5], *listing(outcome).front[:5]):
        assert Candidate.model_validate_json(candidate.model_dump_json()) == candidate
        p = candidate.prediction
        assert p.e2e_interval_ms is not None
        assert p.memory_interval_bytes is not None
        assert p.e2e_interval_ms.low <= p.e2e_ms <= p.e2e_interval_ms.high
        assert p.memory_interval_bytes.low <= p.memory_bytes <= p.memory_interval_bytes.high


def test_an_accuracy_that_was_not_measured_passes_no_floor_unless_the_intent_says_so() -> None:
    outcome = search(intent(min_accuracy=0.0), SPACE)
    assert "int4" not in {k[1] for k in keys(outcome, outcome.met)}
    unmeasured = [r for r in listing(outcome).rejected if r.configuration.precision is Precision.INT4]
    assert {(r.constraint, r.predicted) for r in unmeasured} == {("min_accuracy", None)}
    allowed = search(intent(min_accuracy=0.98, allow_unmeasured_accuracy=True), SPACE)
    assert {k[1] for k in keys(allowed, allowed.met)} == {"fp32", "bf16", "int4"}


def test_a_quantised_cache_beside_full_weights_was_not_measured_with_the_variant() -> None:
    space = space_of((fingerprint(kv_precision=Precision.INT8),), max_pp=1)
    assert space.estimators == ()
    assert space.silent == ("fp32, bf16, int8, int4 on cpu-1t cannot be predicted: nothing was measured",)


@pytest.mark.parametrize("objective", [o for o in Objective if o is not Objective.MIN_PRICE])
def test_the_list_holds_every_depth_of_pipeline_at_its_best_and_at_its_leanest(objective: Objective) -> None:
    outcome = search(intent(objective=objective, rate=0.05), space_of(max_pp=8))
    listed = listing(outcome).candidates
    assert outcome.judged is not None
    assert len(listed) == 64 < len(outcome.met)
    assert [c.score for c in listed] == sorted(c.score for c in listed)
    assert listed[0].score == outcome.judged.score[outcome.met[0]]
    kinds = Counter((c.configuration.precision, c.configuration.pp) for c in listed)
    assert len(kinds) == 4 * 8
    columns = outcome.judged.columns
    for pp in range(1, 9):
        least = min(columns.memory_bytes[i] for i in outcome.met if columns.pp[i] == pp)
        assert least in {c.prediction.memory_bytes for c in listed if c.configuration.pp == pp}


def test_rejections_are_at_most_64_and_show_every_depth_of_pipeline() -> None:
    rejected = listing(search(intent(slo=Slo(tpot_ms=1)), space_of(max_pp=8))).rejected
    assert len(rejected) == 64
    assert {r.configuration.pp for r in rejected} == set(range(1, 9))


def test_only_tp_degrees_that_divide_the_heads_and_the_cache_heads_are_offered() -> None:
    outcome = search(intent(), space_of((fingerprint(tp_degrees=(1, 2, 3, 9)),), max_pp=2))
    assert {k[2] for k in keys(outcome, outcome.met)} == {1, 3}


def test_no_batch_beyond_the_measured_ones_is_offered() -> None:
    space = space_of((fingerprint(samples=samples(batches=(1, 6))),), max_pp=1)
    outcome = search(intent(rate=0.01), space)
    assert sorted(k[4] for k in keys(outcome, outcome.met)) == [1, 2, 4, 6]


def test_no_more_stages_than_layers_engine_and_settings_allow() -> None:
    few = FACTS.model_copy(update={"num_layers": 3})
    for facts, engine, setting, most in ((few, 9, 9, 3), (FACTS, 2, 9, 2), (FACTS, 9, 4, 4)):
        outcome = search(intent(), space_of((fingerprint(max_pp=engine),), facts=facts, max_pp=setting))
        assert max(k[3] for k in keys(outcome, outcome.met)) == most


def test_the_most_throughput_fills_the_budget_with_replicas_and_the_rest_takes_what_the_load_needs() -> None:
    few = search(intent(objective=Objective.MAX_THROUGHPUT, max_gpus=4), SPACE)
    best = listing(few).candidates[0]
    assert best.replicas * best.configuration.num_gpus == 4
    assert best.prediction.goodput_tokens_per_s is not None
    assert -best.score == pytest.approx(best.prediction.goodput_tokens_per_s * best.replicas)
    assert listing(search(intent(max_gpus=4), SPACE)).candidates[0].replicas == 1


def test_goodput_is_the_highest_rate_that_still_meets_the_slo() -> None:
    slo = Slo(tpot_ms=60, percentile=90)
    for candidate in listing(search(intent(slo=slo, rate=0.01, replicas=1), SPACE)).candidates[:8]:
        goodput = candidate.prediction.goodput_tokens_per_s
        assert goodput is not None
        rate = goodput / 64
        for factor, does in ((0.998, True), (1.002, False)):
            outcome = search(intent(slo=slo, rate=rate * factor, replicas=1), SPACE)
            assert (key(candidate.configuration) in keys(outcome, outcome.met)) == does


def test_what_has_no_price_is_never_the_cheapest_nor_within_a_budget() -> None:
    for wanted in (intent(objective=Objective.MIN_PRICE), intent(max_price_per_hour=1e6)):
        outcome = search(wanted, SPACE)
        assert {k[0] for k in keys(outcome, outcome.met)} == {"cpu-1t", "gpu"}


def test_each_hop_costs_each_token_once_and_the_prompt_once() -> None:
    idle = {one.key[2:4]: one for one in reference.every(intent(rate=1e-6), space_of((fingerprint(),)))}
    assert idle[1, 2].steps_ms[0] - idle[1, 1].steps_ms[0] == pytest.approx(0.25)
    assert idle[1, 2].prefill_ms - idle[1, 1].prefill_ms == pytest.approx(0.25)


def test_micro_batches_fill_a_pipeline_up_to_its_fullest_stage() -> None:
    by_shape = {one.key[3:]: one for one in reference.every(intent(), space_of((fingerprint(),)))}
    gain = by_shape[2, 8].capacity_per_ms() / by_shape[1, 8].capacity_per_ms()
    assert 1.0 < gain < 2.0


@pytest.mark.parametrize(
    ("tokens", "asked", "slot"),
    [((100, 50), None, 320), ((3000, 2000), None, 8192), ((100, 50), 150, 150), ((8000, 192), None, 8192)],
)
def test_a_slot_holds_what_was_asked_or_twice_the_mean(tokens: tuple[int, int], asked: int | None, slot: int) -> None:
    wanted = intent(input_tokens=tokens[0], output_tokens=tokens[1], context_tokens=asked)
    assert context_tokens(wanted.workload, FACTS) == slot


def test_a_workload_beyond_the_models_context_is_not_considered() -> None:
    assert search(intent(input_tokens=8000, output_tokens=193), SPACE).num_considered == 0
