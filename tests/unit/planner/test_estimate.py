from itertools import product
from math import isfinite

import pytest

from maveriq.contracts import DAY_MS, Configuration, Precision, Slo
from maveriq_planner.counteroffers import counteroffers
from maveriq_planner.estimate import fit
from maveriq_planner.search import measured_space, search
from tests.unit.planner.measurements import FACTS, MODEL, Truth, fingerprint, intent

LAW = fit(FACTS, fingerprint())


def configuration(**changes: int) -> Configuration:
    plain = Configuration(
        engine="torch", gpu_type="cpu-1t", tp=1, pp=1, precision=Precision.FP32, kv_precision=Precision.FP32,
        max_batch=8, context_tokens=512,
    )  # fmt: skip
    return plain.model_copy(update=changes)


def test_an_idle_deployment_is_predicted_as_the_law_that_wrote_the_samples() -> None:
    truth = Truth()
    estimate = LAW.estimate(configuration(), intent(rate=1e-6).workload, 1.0)
    prediction = estimate.prediction
    assert estimate.busy_batch == 1
    assert prediction.ttft_ms == pytest.approx(truth.prefill(30, 1, 128), rel=1e-6)
    assert prediction.tpot_ms == pytest.approx(truth.decode(30, 1, 128 + 32), rel=1e-6)
    assert prediction.e2e_ms == pytest.approx(prediction.ttft_ms + 63 * prediction.tpot_ms)
    assert prediction.gpu_s == pytest.approx(prediction.e2e_ms / 1e3)


def test_a_full_pipeline_is_bound_by_its_fullest_stage() -> None:
    workload = intent(input_tokens=1, output_tokens=500, rate=1e-6).workload
    estimate = LAW.estimate(configuration(pp=2), workload, None)
    truth = Truth()
    last_ms = truth.decode(15, 4, 251)  # half the layers and the ends, for one micro-batch of two
    prompt_ms = truth.prefill(15, 1, 1)
    assert estimate.capacity_per_s == pytest.approx(1e3 / (prompt_ms + 499 * 2 * last_ms / 8), rel=0.01)


def test_all_reduces_are_charged_so_that_tp_pays_only_over_a_fast_link() -> None:
    wanted = intent(rate=1e-6).workload
    one = LAW.estimate(configuration(), wanted, None).prediction
    slow = LAW.estimate(configuration(tp=3), wanted, None).prediction
    fast = fit(FACTS, fingerprint(hop_ms=0.01)).estimate(configuration(tp=3), wanted, None).prediction
    assert one.tpot_ms / 3 < fast.tpot_ms < one.tpot_ms < slow.tpot_ms
    assert fast.ttft_ms > one.ttft_ms


@pytest.mark.parametrize(
    ("rate", "tokens", "slo_ms"),
    list(product((5e-324, 1e-6, 1e6), ((1, 1), (1, 8191), (8191, 1), (4000, 4000)), (1e-9, DAY_MS))),
)
def test_absurd_but_legal_intents_get_finite_predictions_and_counteroffers(
    rate: float, tokens: tuple[int, int], slo_ms: float
) -> None:
    slo = Slo(ttft_ms=slo_ms, tpot_ms=slo_ms, e2e_ms=slo_ms)
    wanted = intent(slo=slo, input_tokens=tokens[0], output_tokens=tokens[1], rate=rate, replicas=1000, max_gpus=1000)
    space = measured_space(MODEL, FACTS, (fingerprint(),), max_pp=30, fit=fit)
    outcome = search(wanted, space)
    for judged in (*outcome.met, *outcome.missed):
        prediction = judged.estimate.prediction
        assert all(isfinite(value) for value in (prediction.e2e_ms, prediction.throughput_tokens_per_s, judged.score))
    if not outcome.met:
        for offer in counteroffers(wanted, space, outcome):
            assert search(offer.intent, space).met
