from collections import Counter
from itertools import product
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import Configuration, Intent, Objective, Precision, Slo
from maveriq_planner.estimate import Estimate, fit
from maveriq_planner.search import GIB, Space, context_tokens, measured_space, search
from tests.unit.planner.measurements import FACTS, MODEL, fingerprint, fingerprints, intent, samples

SPACE = measured_space(MODEL, FACTS, fingerprints(), max_pp=4, fit=fit)
ACCURACY = {Precision.FP32: 1.0, Precision.BF16: 0.99, Precision.INT8: 0.97, Precision.INT4: None}


def every_estimate(wanted: Intent, space: Space = SPACE) -> list[tuple[Configuration, Estimate]]:
    """The whole space, spelt out: what the search must agree with."""
    share = wanted.workload.model_copy(
        update={"request_rate_per_s": wanted.workload.request_rate_per_s / wanted.replicas}
    )
    tokens = context_tokens(wanted.workload, FACTS)
    assert tokens is not None
    found: list[tuple[Configuration, Estimate]] = []
    for (print_, law), pp, batch in product(space.fitted, range(1, space.max_pp + 1), (1, 2, 4, 8)):
        c = Configuration(
            engine="torch", gpu_type=print_.gpu_type, tp=1, pp=pp, precision=print_.precision,
            kv_precision=print_.kv_precision, max_batch=batch, context_tokens=tokens,
        )  # fmt: skip
        found.append((c, law.estimate(c, share, ACCURACY[c.precision])))
    return found


def meets(wanted: Intent, c: Configuration, e: Estimate) -> bool:
    p, slo = e.prediction, wanted.slo
    floor = wanted.min_accuracy
    return (
        p.ttft_ms <= (slo.ttft_ms or inf)
        and p.tpot_ms <= (slo.tpot_ms or inf)
        and p.e2e_ms <= (slo.e2e_ms or inf)
        and e.sustained
        and (floor is None or (p.accuracy is not None and p.accuracy >= floor))
        and c.pp * wanted.replicas <= (wanted.max_gpus or inf)
    )


def value(objective: Objective, c: Configuration, e: Estimate) -> float:
    p = e.prediction
    return {
        Objective.MIN_LATENCY: p.e2e_ms,
        Objective.MIN_COST: p.e2e_ms / 1e3 * (p.memory_bytes / GIB),
        Objective.MIN_MEMORY: p.memory_bytes / GIB,
        Objective.MIN_GPU_COST: p.e2e_ms / 1e3 * c.pp,
    }[objective]


def some(low: float, high: float) -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(low, high)


INTENTS = st.builds(
    lambda ttft, tpot, e2e, **fields: intent(slo=Slo(ttft_ms=ttft, tpot_ms=tpot, e2e_ms=e2e), **fields),
    some(100, 3000), some(30, 120), some(1500, 9000),
    objective=st.sampled_from(Objective), input_tokens=st.integers(1, 600), output_tokens=st.integers(1, 200),
    rate=st.floats(0.01, 4), min_accuracy=st.sampled_from([None, 0.0, 0.97, 0.98, 1.0]),
    max_gpus=st.none() | st.integers(1, 6), replicas=st.integers(1, 3),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(INTENTS)
def test_the_search_finds_exactly_what_brute_force_finds_best_first(wanted: Intent) -> None:
    outcome = search(wanted, SPACE)
    everything = every_estimate(wanted)
    met = {c: value(wanted.objective, c, e) for c, e in everything if meets(wanted, c, e)}
    assert {j.configuration: j.score for j in outcome.met} == met
    assert [j.score for j in outcome.met] == sorted(met.values())
    assert {j.configuration for j in outcome.missed} == {c for c, _ in everything} - met.keys()
    excesses = [j.misses[0].excess for j in outcome.missed]
    assert excesses == sorted(excesses)
    if met:
        assert outcome.candidates()[0].score == min(met.values())


@settings(max_examples=30, deadline=None)
@given(INTENTS)
def test_each_rejection_says_what_was_missed_and_by_how_much(wanted: Intent) -> None:
    for rejection in search(wanted, SPACE).rejections():
        p = rejection.prediction
        reported: dict[str, Any] = {
            "slo.ttft_ms": (wanted.slo.ttft_ms, p.ttft_ms),
            "slo.tpot_ms": (wanted.slo.tpot_ms, p.tpot_ms),
            "slo.e2e_ms": (wanted.slo.e2e_ms, p.e2e_ms),
            "workload.request_rate_per_s": (
                wanted.workload.request_rate_per_s,
                pytest.approx(p.throughput_tokens_per_s / wanted.workload.output_tokens * wanted.replicas),
            ),
            "min_accuracy": (wanted.min_accuracy, p.accuracy),
            "max_gpus": (wanted.max_gpus, rejection.configuration.pp * wanted.replicas),
        }
        assert (rejection.wanted, rejection.predicted) == reported[rejection.constraint]


def test_an_accuracy_that_was_not_measured_passes_no_floor() -> None:
    outcome = search(intent(min_accuracy=0.0), SPACE)
    assert {j.configuration.precision for j in outcome.met} == {Precision.FP32, Precision.BF16, Precision.INT8}
    unmeasured = [r for r in outcome.rejections() if r.configuration.precision is Precision.INT4]
    assert {(r.constraint, r.predicted) for r in unmeasured} == {("min_accuracy", None)}


def test_a_quantised_cache_beside_full_weights_was_not_measured_with_the_variant() -> None:
    space = measured_space(MODEL, FACTS, (fingerprint(kv_precision=Precision.INT8),), max_pp=1, fit=fit)
    assert search(intent(min_accuracy=0.5), space).met == ()
    assert search(intent(), space).met


@pytest.mark.parametrize("objective", Objective)
def test_the_list_holds_every_depth_of_pipeline_at_its_best_and_at_its_leanest(objective: Objective) -> None:
    space = measured_space(MODEL, FACTS, fingerprints(), max_pp=8, fit=fit)
    outcome = search(intent(objective=objective, rate=0.05), space)
    listed = outcome.candidates()
    assert len(listed) == 64 < len(outcome.met)
    assert [c.score for c in listed] == sorted(c.score for c in listed)
    assert listed[0].score == outcome.met[0].score
    kinds = Counter((c.configuration.precision, c.configuration.pp) for c in listed)
    assert len(kinds) == 4 * 8
    for pp in range(1, 9):
        least = min(j.estimate.prediction.memory_bytes for j in outcome.met if j.configuration.pp == pp)
        assert least in {c.prediction.memory_bytes for c in listed if c.configuration.pp == pp}


def test_rejections_are_at_most_64_and_show_every_depth_of_pipeline() -> None:
    space = measured_space(MODEL, FACTS, fingerprints(), max_pp=8, fit=fit)
    rejected = search(intent(slo=Slo(tpot_ms=1)), space).rejections()
    assert len(rejected) == 64
    assert {r.configuration.pp for r in rejected} == set(range(1, 9))


def test_only_tp_degrees_that_divide_the_heads_and_the_cache_heads_are_offered() -> None:
    space = measured_space(MODEL, FACTS, (fingerprint(tp_degrees=(1, 2, 3, 9)),), max_pp=2, fit=fit)
    assert {j.configuration.tp for j in search(intent(), space).met} == {1, 3}


def test_no_batch_beyond_the_measured_ones_is_offered() -> None:
    space = measured_space(MODEL, FACTS, (fingerprint(samples=samples(batches=(1, 6))),), max_pp=1, fit=fit)
    assert sorted(j.configuration.max_batch for j in search(intent(rate=0.01), space).met) == [1, 2, 4, 6]


def test_no_more_stages_than_layers_engine_and_settings_allow() -> None:
    few = FACTS.model_copy(update={"num_layers": 3})
    for facts, engine, setting, most in ((few, 9, 9, 3), (FACTS, 2, 9, 2), (FACTS, 9, 4, 4)):
        space = measured_space(MODEL, facts, (fingerprint(max_pp=engine),), max_pp=setting, fit=fit)
        assert max(j.configuration.pp for j in search(intent(), space).met) == most


def test_each_hop_costs_each_token_once_and_the_prompt_once() -> None:
    idle = {(c.pp, c.precision): e.prediction for c, e in every_estimate(intent(rate=1e-6)) if c.max_batch == 8}
    one, two = idle[1, Precision.FP32], idle[2, Precision.FP32]
    assert two.tpot_ms - one.tpot_ms == pytest.approx(0.25)
    assert two.ttft_ms - one.ttft_ms == pytest.approx(0.25)


def test_micro_batches_fill_a_pipeline_up_to_its_fullest_stage() -> None:
    by_shape = {(c.pp, c.max_batch): e for c, e in every_estimate(intent()) if c.precision is Precision.FP32}
    gain = by_shape[2, 8].capacity_per_s / by_shape[1, 8].capacity_per_s
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
