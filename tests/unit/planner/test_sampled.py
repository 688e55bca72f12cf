"""A model's own fingerprint predicts the whole of it."""

from itertools import product
from math import isfinite
from random import Random

import numpy as np
import pytest

from maveriq.contracts import DAY_MS, Fingerprint, Precision, Slo, Variant
from maveriq_planner.counteroffers import counteroffers
from maveriq_planner.estimate import Errors, Kind, Times
from maveriq_planner.estimators.sampled import SampledLaw, sampled
from maveriq_planner.listing import listing
from maveriq_planner.search import search
from tests.unit.planner.measurements import FACTS, Truth, fingerprint, intent, samples, space_of


def law(print_: Fingerprint) -> SampledLaw:
    kind = Kind("torch", "cpu-1t", Variant(precision=Precision.FP32, accuracy=1.0), Precision.FP32)
    return sampled(kind, FACTS, print_)


def times(print_: Fingerprint, *, tp: int = 1, pp: int = 1, input_tokens: int = 128, output_tokens: int = 64) -> Times:
    workload = intent(input_tokens=input_tokens, output_tokens=output_tokens).workload
    return law(print_).times(tp, np.array([float(pp)]), np.arange(1.0, 9), workload)


def errors(print_: Fingerprint) -> Errors:
    return law(print_).errors(1, np.array([1.0]), np.arange(1.0, 9), intent().workload)


def test_the_law_that_wrote_the_samples_is_found_for_the_whole_model() -> None:
    truth, found = Truth(), times(fingerprint())
    assert found.prefill_ms[0] == pytest.approx(truth.prefill(30, 1, 128), rel=1e-6)
    assert found.step_ms[0] == pytest.approx([truth.decode(30, b, 128 + 32) for b in range(1, 9)], rel=1e-6)


def test_a_full_pipeline_is_bound_by_its_fullest_stage() -> None:
    found = times(fingerprint(), pp=2, input_tokens=1, output_tokens=500)
    last_ms = Truth().decode(15, 4, 251)  # half the layers and the ends, for one micro-batch of four
    assert found.step_ms[0, 7] == pytest.approx(2 * last_ms, rel=0.01)


def test_all_reduces_are_charged_so_that_tp_pays_only_over_a_fast_link() -> None:
    one, slow = times(fingerprint()), times(fingerprint(), tp=3)
    fast = times(fingerprint(hop_ms=0.01), tp=3)
    assert one.step_ms[0, 0] / 3 < fast.step_ms[0, 0] < one.step_ms[0, 0] < slow.step_ms[0, 0]
    assert fast.prefill_ms[0] > one.prefill_ms[0]


def test_nine_intervals_of_ten_hold_the_truth_where_readings_vary() -> None:
    truth = Truth().decode(30, 4, 128 + 32)
    held = 0
    for seed in range(60):
        random = Random(seed)
        noisy = fingerprint(samples=samples(noise=lambda r=random: r.gauss(1, 0.01)))
        off = abs(np.log(times(noisy).step_ms[0, 3] / truth))
        held += bool(off < 1.645 * errors(noisy).step[0, 3])
    assert held / 60 > 0.75


def test_an_interval_of_a_disturbed_measurement_reaches_to_what_was_left_of_the_device() -> None:
    rough = tuple(sample.model_copy(update={"others": 0.85}) for sample in samples())
    space = space_of((fingerprint(samples=rough),), max_pp=1)
    found = listing(search(intent(rate=1e-6), space)).candidates[0].prediction
    assert found.others == 0.85 and found.tpot_interval_ms is not None
    assert found.tpot_interval_ms.low == pytest.approx(0.15 * found.tpot_ms, rel=0.02)


def test_few_cuts_are_less_sure_than_many_and_never_surer_than_one_reading() -> None:
    random = Random(1)
    near, far = (
        errors(fingerprint(samples=samples(layers=layers, noise=lambda: random.gauss(1, 0.01))))
        for layers in ((2, 4), (2, 8, 16))
    )
    assert near.step.mean() > far.step.mean() > 0.002


@pytest.mark.parametrize(
    ("rate", "tokens", "slo_ms"),
    list(product((5e-324, 1e-6, 1e6), ((1, 1), (1, 8191), (8191, 1), (4000, 4000)), (1e-9, DAY_MS))),
)
def test_absurd_but_legal_intents_get_finite_predictions_and_counteroffers(
    rate: float, tokens: tuple[int, int], slo_ms: float
) -> None:
    slo = Slo(ttft_ms=slo_ms, tpot_ms=slo_ms, e2e_ms=slo_ms, percentile=99.9)
    wanted = intent(slo=slo, input_tokens=tokens[0], output_tokens=tokens[1], rate=rate, replicas=1000, max_gpus=1000)
    space = space_of((fingerprint(),), max_pp=30)
    outcome = search(wanted, space)
    assert outcome.judged is not None
    found = outcome.judged.latencies
    for values in (found.e2e_ms, found.e2e_percentile_ms, outcome.judged.score):
        assert all(isfinite(value) for value in values)
    for offer in counteroffers(wanted, space, outcome) if not len(outcome.met) else ():
        assert len(search(offer.intent, space).met)
