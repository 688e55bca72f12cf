"""MaverIQ's published method behind the planner's interface."""

import numpy as np
import pytest

from maveriq.contracts import Basis, Precision
from maveriq_planner.estimators.published import PublishedMethod, by_published
from maveriq_planner.maveriq_method import PUBLISHED, START
from tests.unit.planner.measurements import FACTS, MODEL, Truth, calibration, fingerprint, intent, samples


def method(**changes: object) -> PublishedMethod:
    (found,), _ = by_published(MODEL, FACTS, (fingerprint(**changes),), ())
    assert isinstance(found, PublishedMethod)
    return found


def test_alone_on_one_gpu_the_method_is_a_line_through_its_two_cuts() -> None:
    workload = intent(input_tokens=128, output_tokens=64).workload
    found = method().times(1, np.array([1.0]), np.array([1.0, 2.0, 4.0]), workload)
    truth = Truth()
    step = [truth.decode(30, b, 128 + 8) for b in (1, 2, 4)]  # the method knows no context beyond the measured one
    assert found.step_ms[0] == pytest.approx(step, rel=1e-6)
    assert found.prefill_ms[0] == pytest.approx(truth.prefill(30, 1, 128), rel=0.01)
    assert found.layer_ms is None  # nor a layer
    assert method().errors(1, np.array([1.0]), np.array([1.0]), workload).step.min() > 0.1


def test_its_pipeline_costs_what_its_exponents_say() -> None:
    workload = intent(input_tokens=128).workload
    one, two = method().times(1, np.array([1.0, 2.0]), np.array([1.0]), workload).step_ms[:, 0]
    assert (Precision.FP32, Precision.FP32) not in PUBLISHED
    assert two == pytest.approx(one * (0.5**START.alpha + 1 - 0.5**START.alpha))


def test_it_speaks_for_fingerprints_of_two_depths_and_says_why_it_is_silent_elsewhere() -> None:
    found, silent = by_published(MODEL, FACTS, (fingerprint(samples=samples(layers=(2,))),), (calibration(),))
    assert found == ()
    assert "NVIDIA RTX A6000 is calibrated; MaverIQ's method needs a fingerprint" in silent
    assert "fp32 on cpu-1t cannot be predicted: two cuts at a batch of 1 are needed" in silent
    assert method().basis is Basis.MAVERIQ
    assert method(tp_degrees=(1, 3)).tp_degrees == (1,)
