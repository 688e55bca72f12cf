"""A calibrated GPU type predicts a model that was never run: what its times and bytes must obey."""

from math import ceil

import numpy as np
import pytest

from maveriq import law
from maveriq.contracts import Calibration, Precision, Residuals, Variant
from maveriq_planner.estimate import Kind
from maveriq_planner.estimators.calibrated import CalibratedLaw
from maveriq_planner.estimators.laws import laws_of
from tests.unit.planner.measurements import BIG, BIG_MODEL, CONSTANTS, calibration, fingerprint, intent, space_of

FP16 = Precision.FP16
KIND = Kind("trtllm", "NVIDIA RTX A6000", Variant(precision=FP16), FP16)
WORKLOAD = intent(input_tokens=500, output_tokens=100).workload


def estimator(known: Calibration | None = None, **changes: object) -> CalibratedLaw:
    return CalibratedLaw(KIND, laws_of(BIG.model_copy(update=changes), [known or calibration()]), 0)


def decode_ms(tp: int, pp: int, batch: float, num_layers: int = 32) -> float:
    """The law, multiplied out for one shape."""
    rig = law.Rig("trtllm", FP16, FP16, tp, (1, 8, 64))
    passes = law.decode_terms(
        BIG, rig, batch=batch, context_tokens=550.0, num_layers=num_layers, num_stages=pp, fullest=ceil(num_layers / pp)
    )
    return float(law.dot(CONSTANTS, passes.through(num_layers)))


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_one_request_takes_the_law_through_all_stages(tp: int) -> None:
    found = estimator().times(tp, np.array([1.0, 2.0, 3.0]), np.array([1.0]), WORKLOAD)
    assert found.step_ms[:, 0] == pytest.approx([decode_ms(tp, pp, 1) for pp in (1, 2, 3)])
    rig = law.Rig("trtllm", FP16, FP16, tp, (1, 8, 64))
    prompt = law.prefill_terms(BIG, rig, batch=1, input_tokens=500, num_layers=32, num_stages=2, fullest=16)
    assert found.prefill_ms[1] == pytest.approx(law.dot(CONSTANTS, prompt.through(32)))


def test_a_batch_on_one_stage_takes_the_law_and_in_a_full_pipeline_its_groups_one_after_another() -> None:
    found = estimator().times(1, np.array([1.0, 4.0]), np.array([1.0, 5.0, 16.0, 64.0]), WORKLOAD)
    assert found.step_ms[0] == pytest.approx([decode_ms(1, 1, b) for b in (1, 5, 16, 64)])
    group = decode_ms(1, 1, 16, num_layers=8)  # a quarter of the layers, and the ends
    assert found.step_ms[1, 3] == pytest.approx(4 * group, rel=0.01)
    assert found.prefill_stage_ms[1] < found.prefill_ms[1] / 3


def test_gpu_types_that_differ_in_their_constants_share_the_terms() -> None:
    laws = laws_of(BIG, [calibration(slower=factor) for factor in (1.0, 3.0)])
    shapes = (np.array([1.0, 2.0]), np.array([1.0, 8.0]), WORKLOAD)
    fast, slow = (CalibratedLaw(KIND, laws, which).times(2, *shapes) for which in (0, 1))
    assert len(laws.known) == 1
    assert slow.step_ms == pytest.approx(3 * fast.step_ms)


def test_gpu_types_whose_calibrations_know_other_constants_are_told_apart() -> None:
    """And some of the pipeline degrees are as all of them."""
    fewer = calibration(latency=calibration().latency[:-3], covariance=calibration().covariance[:-3], slower=2.0)
    laws = laws_of(BIG, [calibration(), fewer])
    for which, known in enumerate((calibration(), fewer)):
        alone = estimator(known)
        for pps in (np.array([1.0, 2.0, 3.0]), np.array([3.0])):
            shape = (4, pps, np.array([1.0, 8.0, 64.0]), WORKLOAD)
            together = CalibratedLaw(KIND, laws, which)
            assert together.times(*shape).step_ms == pytest.approx(alone.times(*shape).step_ms)
            assert together.errors(*shape).step == pytest.approx(alone.errors(*shape).step)


def test_a_layer_times_their_number_and_the_ends_is_a_step_of_the_law() -> None:
    found = estimator().times(2, np.array([1.0, 4.0]), np.array([1.0, 8.0]), WORKLOAD)
    assert found.layer_ms is not None
    one_less = estimator(num_layers=31).times(2, np.array([1.0]), np.array([1.0, 8.0]), WORKLOAD)
    assert found.layer_ms[0] == pytest.approx(found.step_ms[0] - one_less.step_ms[0])
    assert found.layer_ms[1, 1] < found.layer_ms[0, 1]  # a pipeline's stage has two of the eight at a time


def test_the_error_is_that_of_the_constants_and_of_what_the_fit_left() -> None:
    def error(**changes: object) -> float:
        sharp = Residuals(median=0.0, p90=0.0, maximum=0.0)
        known = calibration(**({"latency_residuals": sharp} | changes))
        return float(estimator(known).errors(1, np.array([1.0]), np.array([1.0]), WORKLOAD).step[0, 0])

    assert error(error=0.0) == 0
    assert 0.005 < error(error=0.01) < 0.01  # constants err apart: less than each
    assert error(error=0.0, latency_residuals=Residuals(median=0.01, p90=0.02, maximum=0.1)) == pytest.approx(
        0.0148, 0.01
    )


def test_tp_is_limited_to_what_divides_the_heads_and_to_what_was_calibrated() -> None:
    assert estimator().tp_degrees == (1, 2, 4)
    assert estimator(num_kv_heads=2).tp_degrees == (1, 2)
    assert estimator(num_heads=71, num_kv_heads=1).tp_degrees == (1,)


def test_no_pipeline_is_offered_where_none_was_seen_and_no_batch_beyond_the_largest() -> None:
    seen = calibration().scope.model_copy(update={"pp_degrees": (1,)})
    assert estimator(calibration(scope=seen)).max_pp == 1
    assert estimator().max_pp == 8
    assert estimator().max_batch == 64


def test_the_runtime_is_the_measured_ones_or_the_largest_known_and_raised_by_the_margin() -> None:
    def runtime(tp: int, margin: float) -> float:
        found = estimator(calibration(memory_margin=margin)).footprint(tp, np.array([1.0]), np.array([1.0]), 512)
        return float(found.runtime_bytes[0, 0]) / 2**30

    activations = 513 * (4 * 4096 + 2 * (2 * 14336 + 48 * 128)) / 2**30
    assert runtime(1, 0.0) == pytest.approx(0.6 * 1 + activations, rel=1e-3)
    assert runtime(2, 0.0) == pytest.approx(0.9 + 513 * (4 * 4096 + (2 * 14336 + 48 * 128)) / 2**30, rel=1e-3)
    assert runtime(4, 0.0) > 0.9  # never measured at 4: the most of any GPU
    assert runtime(1, 0.05) == pytest.approx(1.05 * runtime(1, 0.0))  # weights and cache are counted


def test_a_calibration_speaks_for_what_it_covers_and_the_fingerprint_for_the_rest() -> None:
    own = fingerprint(precision=FP16, kv_precision=FP16)
    space = space_of((own,), (calibration(),), model=BIG_MODEL, facts=BIG)
    spoken = {(e.kind.gpu_type, e.kind.variant.label): e.basis for e in space.estimators}
    assert spoken == {
        ("NVIDIA RTX A6000", "fp16"): "calibration",
        ("NVIDIA RTX A6000", "fp8"): "calibration",
        ("NVIDIA RTX A6000", "int8"): "calibration",
        ("NVIDIA RTX A6000", "int4"): "calibration",
        ("cpu-1t", "fp16"): "fingerprint",
    }
    assert len(space.silent) == 1
    assert space.silent[0].startswith("fp8, int8, int4 on cpu-1t cannot be predicted: ")


def test_outside_its_scope_a_calibration_is_silent_and_says_why() -> None:
    far = BIG.model_copy(update={"layer_params": 3_000_000_000})
    space = space_of((), (calibration(),), model=BIG_MODEL, facts=far)
    assert space.estimators == ()
    start = "fp16, fp8, int8, int4 on NVIDIA RTX A6000 cannot be predicted: the GPU type's calibration"
    assert space.silent[0].startswith(start)
    assert "layer_params 3000000000" in space.silent[0]
    unsized = space_of((), (calibration(memory=()),), model=BIG_MODEL, facts=BIG)
    assert "memory was never measured" in unsized.silent[0]


def test_a_quantised_variant_that_leaves_its_cache_open_takes_a_full_precision_that_was_seen() -> None:
    space = space_of((), (calibration(),), model=BIG_MODEL, facts=BIG)
    caches = {e.kind.variant.label: str(e.kind.kv_precision) for e in space.estimators}
    assert caches == {"fp16": "fp16", "fp8": "fp8", "int8": "fp16", "int4": "fp16"}
