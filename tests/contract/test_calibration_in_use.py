"""What a calibration is for: its models are not measured, served times sharpen it, and misses are planned again."""

from maveriq.contracts import (
    CalibrationUpdated,
    FingerprintMeasured,
    MeasurementRequested,
    PredictionMissed,
)
from maveriq_profiler.__main__ import seen
from maveriq_profiler.pool import Outcome, Pool
from tests.contract.calibration_cluster import DEPLOYMENT, SIZE, Cluster, accepted
from tests.unit.profiler.calibrations import calibration, decoded, report
from tests.unit.profiler.rigs import FACTS, FakeProbe, rig


async def calibrated(cluster: Cluster, *gpu_types: str) -> None:
    handlers = cluster.profiler(FakeProbe())
    for gpu_type in gpu_types:
        known = calibration(gpu_type)
        assert await handlers.calibrating.samples.keep_calibration(Pool.of(known), known)
        await handlers.rigs.say(seen(rig(gpu_type)))


async def test_a_model_that_calibrations_cover_is_not_measured(cluster: Cluster) -> None:
    await calibrated(cluster, "cpu-1t", "NVIDIA L4")
    probe = FakeProbe()
    (measured,) = await cluster.tell(probe, accepted())
    assert isinstance(measured, FingerprintMeasured)
    assert probe.measured == [] and measured.fingerprints == ()
    assert [one.gpu_type for one in measured.calibrations] == ["NVIDIA L4", "cpu-1t"]


async def test_where_one_gpu_type_is_calibrated_only_the_others_measure(cluster: Cluster) -> None:
    await calibrated(cluster, "NVIDIA L4")
    probe = FakeProbe()
    (measured,) = await cluster.tell(probe, accepted())
    assert isinstance(measured, FingerprintMeasured)
    assert [one.gpu_type for one in measured.fingerprints] == ["cpu-1t"]
    assert [one.gpu_type for one in measured.calibrations] == ["NVIDIA L4"]


async def test_a_rig_that_is_not_calibrated_is_asked_from_one_that_is(cluster: Cluster) -> None:
    await calibrated(cluster, "cpu-1t")
    await cluster.profiler(FakeProbe()).rigs.say(seen(rig("NVIDIA L4")))
    (asked,) = await cluster.tell(FakeProbe(), accepted())
    assert isinstance(asked, MeasurementRequested) and asked.node == "torch-nvidia-l4"


async def test_a_fingerprint_is_a_sample_of_its_gpu_type(cluster: Cluster) -> None:
    probe = FakeProbe()
    await cluster.tell(probe, accepted())
    (kept,) = (await cluster.profiler(probe).calibrating.samples.outcomes(POOL)).values()
    assert [sample.layers for sample in kept.samples] == [(1,), (2,)]


POOL = Pool.of(calibration())


async def sampled(cluster: Cluster) -> None:
    """A calibrated GPU type, with what a refit needs, and a deployment that was planned from it."""
    await calibrated(cluster, "cpu-1t")
    samples = cluster.profiler(FakeProbe()).calibrating.samples
    for item in cluster.programme(SIZE):
        found = await FakeProbe().run_item(item, device="cpu")
        await samples.keep_outcome(POOL, item.key, Outcome(samples=found, cost_s=1.0))
    await cluster.tell(FakeProbe(), accepted())


async def test_served_times_sharpen_the_calibration_at_most_once_a_minute(cluster: Cluster) -> None:
    await sampled(cluster)
    (updated,) = await cluster.tell(FakeProbe(), report(decoded(3.0)))
    assert isinstance(updated, CalibrationUpdated)
    assert updated.calibration.version == 2
    assert FACTS.layer_params in updated.calibration.scope.layer_params
    assert await cluster.tell(FakeProbe(), report(decoded(3.1))) == []
    served = await cluster.profiler(FakeProbe()).calibrating.samples.served(POOL)
    assert [one.count for one in served.values()] == [20]


async def test_served_times_alone_make_no_calibration(cluster: Cluster) -> None:
    await cluster.profiler(FakeProbe()).rigs.say(seen(rig()))
    assert await cluster.tell(FakeProbe(), report(decoded(3.0))) == []
    assert len(await cluster.profiler(FakeProbe()).calibrating.samples.served(POOL)) == 1


async def test_times_of_stages_on_several_gpu_types_speak_of_none(cluster: Cluster) -> None:
    await sampled(cluster)
    assert await cluster.tell(FakeProbe(), report(decoded(9.0), gpu_types=("cpu-1t", "NVIDIA L4"))) == []
    assert await cluster.profiler(FakeProbe()).calibrating.samples.served(POOL) == {}


async def test_times_of_another_engine_version_are_not_mixed_in(cluster: Cluster) -> None:
    await sampled(cluster)
    of_another = report(decoded(9.0)).model_copy(update={"engine_version": "2.14-r1"})
    assert await cluster.tell(FakeProbe(), of_another) == []
    assert await cluster.profiler(FakeProbe()).calibrating.samples.served(POOL) == {}


async def test_three_reports_in_a_row_off_the_prediction_flag_a_deployment_and_plan_it_again(cluster: Cluster) -> None:
    await sampled(cluster)
    first = await cluster.tell(FakeProbe(), report(decoded(9.0)))
    second = await cluster.tell(FakeProbe(), report(decoded(9.0)))
    assert [type(message) for message in (*first, *second)] == [CalibrationUpdated]
    updated, missed, again = await cluster.tell(FakeProbe(), report(decoded(9.0)))
    assert isinstance(updated, CalibrationUpdated) and updated.calibration.version == 3
    assert isinstance(missed, PredictionMissed) and (missed.engine, missed.gpu_type) == ("torch", "cpu-1t")
    assert (missed.deployment_id, missed.measured_ms, missed.predicted_ms) == (DEPLOYMENT, 9.0, 3.0)
    assert isinstance(again, FingerprintMeasured)
    assert again.deployment_id == DEPLOYMENT and again.admission == accepted().admission
    assert again.calibrations == (updated.calibration,)


async def test_a_report_that_keeps_to_the_prediction_ends_the_row(cluster: Cluster) -> None:
    await sampled(cluster)
    for ms in (9.0, 9.0, 3.0, 9.0, 9.0):
        said = await cluster.tell(FakeProbe(), report(decoded(ms)))
        assert not any(isinstance(message, PredictionMissed) for message in said)


async def test_each_replicas_reports_are_counted_for_themselves(cluster: Cluster) -> None:
    await sampled(cluster)
    for node in ("a", "b", "a", "b"):
        said = await cluster.tell(FakeProbe(), report(decoded(9.0), node=node))
        assert not any(isinstance(message, PredictionMissed) for message in said)
