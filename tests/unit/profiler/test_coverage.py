"""Which GPU types need no fingerprint of a model."""

from dataclasses import replace

from maveriq.contracts import Precision, Variant
from maveriq_profiler.__main__ import seen
from maveriq_profiler.coverage import Kind, covered, current, missing
from tests.unit.profiler.calibrations import calibration
from tests.unit.profiler.rigs import FACTS, rig

FP32 = (Variant(precision=Precision.FP32, accuracy=1.0),)
HERE = Kind("torch", rig().engine_version, "cpu-1t", Precision.FP32)


def test_a_calibration_covers_the_precisions_that_it_has_seen() -> None:
    both = (*FP32, Variant(precision=Precision.BF16, accuracy=1.0))
    assert covered(FACTS, both, [calibration()]) == {HERE}
    assert covered(FACTS.model_copy(update={"hidden_size": 100_000}), both, [calibration()]) == set()
    assert covered(FACTS, both, [calibration()], context_tokens=2048) == {HERE}
    assert covered(FACTS, both, [calibration()], context_tokens=2049) == set()


def test_a_calibration_of_an_older_engine_counts_no_more_where_a_newer_one_runs() -> None:
    newer = seen(replace(rig(), engine_version="3.0-r1"))
    assert current([calibration()], [newer]) == ()
    assert current([calibration()], [seen(rig())]) == (calibration(),)
    assert current([calibration("NVIDIA L4")], [newer]) == (calibration("NVIDIA L4"),)


def test_only_rigs_that_could_add_something_are_asked() -> None:
    present = [seen(rig()), seen(rig("NVIDIA L4"))]
    assert missing(present, {HERE}, [Precision.FP32], asked=()) == ("torch-nvidia-l4",)
    assert missing(present, {HERE}, [Precision.FP32, Precision.BF16], asked=("torch-nvidia-l4",)) == ("torch-cpu-1t",)
    assert missing(present, {HERE}, [Precision.INT4], asked=()) == ()
