"""Which GPU types need no fingerprint of a model."""

from dataclasses import replace

from maveriq.contracts import Precision
from maveriq_profiler.__main__ import seen
from maveriq_profiler.coverage import Kind, covered, current, missing
from maveriq_profiler.formats import Format
from tests.unit.profiler.calibrations import calibration
from tests.unit.profiler.rigs import FACTS, rig

FP32 = (Format(Precision.FP32, Precision.FP32),)
BF16 = Format(Precision.BF16, Precision.BF16)
HERE = Kind("torch", rig().engine_version, "cpu-1t", FP32[0])


def test_a_calibration_covers_the_precisions_that_it_has_seen() -> None:
    both = (*FP32, BF16)
    assert covered(FACTS, both, [calibration()]) == {HERE}
    assert covered(FACTS.model_copy(update={"hidden_size": 100_000}), both, [calibration()]) == set()
    assert covered(FACTS, both, [calibration()], context_tokens=2048) == {HERE}
    assert covered(FACTS, both, [calibration()], context_tokens=2049) == set()


def test_quantised_weights_are_covered_only_as_they_were_computed_when_measured() -> None:
    known = calibration()
    scope = known.scope.model_copy(
        update={
            "precisions": (Precision.BF16, Precision.FP32, Precision.INT8),
            "kv_precisions": (Precision.BF16, Precision.FP32),
            "computed_in": ((Precision.INT8, Precision.FP32),),
        }
    )
    both = [Format(Precision.INT8, full) for full in (Precision.BF16, Precision.FP32)]
    found = covered(FACTS, both, [known.model_copy(update={"scope": scope})])
    assert {kind.format for kind in found} == {Format(Precision.INT8, Precision.FP32)}


def test_a_calibration_of_an_older_engine_counts_no_more_where_a_newer_one_runs() -> None:
    newer = seen(replace(rig(), engine_version="3.0-r1"))
    assert current([calibration()], [newer]) == ()
    assert current([calibration()], [seen(rig())]) == (calibration(),)
    assert current([calibration("NVIDIA L4")], [newer]) == (calibration("NVIDIA L4"),)


def test_only_rigs_that_could_add_something_are_asked() -> None:
    present = [seen(rig()), seen(rig("NVIDIA L4"))]
    assert missing(present, {HERE}, FP32, asked=()) == ("torch-nvidia-l4",)
    assert missing(present, {HERE}, (*FP32, BF16), asked=("torch-nvidia-l4",)) == ("torch-cpu-1t",)
    assert missing(present, {HERE}, [Format(Precision.FP8, Precision.FP32)], asked=()) == ()
