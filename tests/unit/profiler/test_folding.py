"""Served times become samples, and are held against what was predicted."""

import pytest

from maveriq.contracts import Precision, ServedTime
from maveriq_profiler.folding import miss, mixed, of_fingerprint, predicted, served
from maveriq_profiler.run_terms import terms_of
from tests.unit.profiler.calibrations import NOW, calibration, decoded, report
from tests.unit.profiler.rigs import FACTS, fingerprint, rig


def test_a_kind_of_pass_is_one_sample_of_the_whole_model() -> None:
    kinds = served(report(decoded(3.0), decoded(5.0, batch=8), decoded(3.2, input_tokens=65)), NOW)
    assert len(kinds) == 2
    samples = [one.sample for one in kinds.values()]
    assert {sample.batch for sample in samples} == {1, 8}
    assert all(sample.served and sample.layers == (4,) and sample.facts == FACTS for sample in samples)


def test_an_answer_so_far_is_half_of_a_samples_answer() -> None:
    (one,) = served(report(decoded(3.0)), NOW).values()
    assert one.sample.input_tokens + one.sample.output_tokens / 2 == 64 + 8


def test_times_are_weighted_by_their_passes_and_follow_what_changes() -> None:
    (old,) = served(report(decoded(2.0, count=10)), NOW).values()
    (new,) = served(report(decoded(5.0, count=20)), NOW).values()
    both = mixed(old, new)
    assert both.sample.decode_ms == pytest.approx(4.0)
    for _ in range(400):
        both = mixed(both, new)
    assert both.count == 1000
    assert both.sample.decode_ms == pytest.approx(5.0, rel=1e-3)


def test_prefill_and_decode_are_told_apart() -> None:
    reading = ServedTime(batch=1, input_tokens=64, output_tokens=1, prefill_ms=9.0, count=3)
    prefill, decode = served(report(reading, decoded(3.0)), NOW).values()
    assert (prefill.sample.prefill_ms, prefill.sample.decode_ms) == (9.0, None)
    assert (decode.sample.prefill_ms, decode.sample.decode_ms) == (None, 3.0)


def test_a_fingerprint_is_a_sample_of_each_cut() -> None:
    samples = of_fingerprint(FACTS, fingerprint(rig()))
    assert [sample.layers for sample in samples] == [(1,), (2,)]
    assert [sample.decode_ms for sample in samples] == [2.0, 4.0]
    assert not any(sample.served for sample in samples)


def test_an_interval_is_what_the_fit_left_and_what_the_constants_may_be_off() -> None:
    (one,) = served(report(decoded(3.0)), NOW).values()
    certain = predicted(calibration(p90=0.1), one.sample, decode=True)
    assert certain is not None
    assert (certain.ms, certain.low, certain.high) == pytest.approx((3.0, 2.7, 3.3))
    # each layer's 0.1 ms and the step's 0.2 ms of deviation, of which the step's makes up for half of the layers'
    unsure = calibration(p90=0.0, covariance=((0.01,), (-0.01, 0.04)))
    wide = predicted(unsure, one.sample, decode=True)
    assert wide is not None
    assert wide.high - wide.ms == pytest.approx(1.645 * (16 * 0.01 - 2 * 4 * 0.01 + 0.04) ** 0.5)


def test_what_a_calibration_does_not_cover_is_not_predicted() -> None:
    (one,) = served(report(decoded(3.0)), NOW).values()
    assert predicted(calibration(), one.sample.model_copy(update={"precision": Precision.FP8}), decode=True) is None
    assert (
        miss(report(decoded(3.0)), calibration(scope=calibration().scope.model_copy(update={"num_models": 1}))) is None
    )


def test_a_report_misses_when_most_of_its_passes_do() -> None:
    few_slow = report(decoded(3.0, count=60), decoded(9.0, batch=8, count=50))
    assert miss(few_slow, calibration()) is None
    many_slow = report(decoded(3.0, count=40), decoded(9.0, batch=8, count=50))
    missed = miss(many_slow, calibration())
    assert missed is not None
    assert (missed.what, missed.batch, missed.measured_ms, missed.predicted_ms) == ("decode_ms", 8, 9.0, 3.0)
    assert missed.interval_ms == pytest.approx((2.7, 3.3))


def test_faster_than_predicted_is_a_miss_too() -> None:
    assert miss(report(decoded(1.0)), calibration()) is not None


def test_layers_of_several_precisions_count_each_as_its_own_and_the_ends_as_the_full_one() -> None:
    uniform, half = report(decoded(3.0)), ((Precision.FP32, 1), (Precision.INT8, 3))
    mixed_report = uniform.model_copy(update={"mix": half})
    (kind,) = served(mixed_report, NOW)
    assert kind not in served(uniform, NOW)
    (one,) = served(mixed_report, NOW).values()
    terms = terms_of(one.sample, "torch", (1, 8), "decode")
    assert (terms["layer[full]"], terms["layer[quantised]"], terms["step"]) == (1.0, 3.0, 1.0)
    assert predicted(calibration(), one.sample, decode=True) is None, "it never saw int8"
    seen = calibration().scope.model_copy(update={"precisions": (Precision.FP32, Precision.INT8)})
    found = predicted(calibration(scope=seen), one.sample, decode=True)
    assert found is not None and found.ms == pytest.approx(1.0 + 0.5)
