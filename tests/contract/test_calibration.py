"""Calibration as its neighbours see it: the profiler's and the allocator's messages through JSON, on a real Redis."""

import asyncio
from uuid import UUID

from maveriq.contracts import (
    CalibrationProgressed,
    CalibrationRequested,
    CalibrationUpdated,
    DeploymentWaiting,
    FingerprintMeasured,
    MeasurementProgressed,
    MemoryFreed,
    MemoryRequested,
    PlacementReserved,
    Precision,
)
from maveriq.running import end
from tests.contract.calibration_cluster import MODELS, RUN, SIZE, Cluster, SlowProbe, accepted
from tests.unit.allocator.plans import candidate, computed, memory
from tests.unit.profiler.rigs import FakeProbe


async def test_a_gpu_type_is_calibrated_at_the_start_in_memory_that_is_held_and_given_back(cluster: Cluster) -> None:
    probe = SlowProbe()
    async with cluster.calibrating(probe):
        await cluster.until(lambda: len(probe.ran) == 1)
        assert cluster.held_bytes() == SIZE
        probe.gate.set()
        last = await cluster.until_finished()
    assert (last.num_done, last.num_planned, last.problem) == (MODELS, MODELS, "")
    assert (last.node, last.gpu_type, last.budget_s) == ("torch-cpu-1t", "cpu-1t", 1000)
    assert last.spent_s > 0
    told = [(news.num_done, news.measuring) for news in cluster.all(CalibrationProgressed)]
    assert told == [(n, item.key) for n, item in enumerate(cluster.programme(SIZE))] + [(MODELS, "")]
    (updated,) = cluster.all(CalibrationUpdated)
    assert updated.calibration.scope.num_models == MODELS
    runtime = [constant.value for constant in updated.calibration.memory if constant.name.startswith("runtime.")]
    assert runtime and set(runtime) == {0.0}, "measured to be nothing, which is known"
    assert cluster.held_bytes() == 0


async def test_a_killed_profiler_goes_on_where_it_stopped(cluster: Cluster) -> None:
    killed, next_one = SlowProbe(), FakeProbe()
    killed.gate.set()
    async with cluster.calibrating(killed):
        await cluster.until(lambda: len(killed.ran) == 1)
        killed.gate.clear()
        await cluster.until(lambda: len(killed.ran) == 2)
    async with cluster.calibrating(next_one):
        await cluster.until_finished()
    keys = [item.key for item in cluster.programme(SIZE)]
    assert (killed.ran[:1], next_one.ran) == (keys[:1], keys[1:])
    assert len({news.calibration_id for news in cluster.all(CalibrationProgressed)}) == 1


async def test_two_profilers_of_one_gpu_type_measure_nothing_twice(cluster: Cluster) -> None:
    one, other = FakeProbe(), FakeProbe()
    async with cluster.calibrating(one, other):
        await cluster.until_finished()
    assert sorted(one.ran + other.ran) == sorted(item.key for item in cluster.programme(SIZE))


async def test_what_is_calibrated_is_left_alone_at_the_next_start(cluster: Cluster) -> None:
    async with cluster.calibrating(FakeProbe()):
        await cluster.until_finished()
    again = FakeProbe()
    async with cluster.calibrating(again):
        await asyncio.sleep(0.2)
    assert again.ran == []


async def test_nothing_is_measured_unasked_where_that_is_switched_off(cluster: Cluster) -> None:
    probe = FakeProbe()
    async with cluster.calibrating(probe, at_start=False):
        await asyncio.sleep(0.2)
        assert probe.ran == []
        await cluster.tell(probe, CalibrationRequested(calibration_id=RUN, node="torch-cpu-1t", budget_s=50))
        last = await cluster.until_finished()
    assert (last.calibration_id, last.budget_s) == (RUN, 50)


async def test_quantised_precisions_are_measured_from_when_they_are_asked_for(cluster: Cluster) -> None:
    probe = FakeProbe()
    async with cluster.calibrating(probe):
        assert (await cluster.until_finished()).num_planned == MODELS
        wanted = CalibrationRequested(calibration_id=RUN, node="torch-cpu-1t", precisions=(Precision.INT4,))
        await cluster.tell(probe, wanted)
        await cluster.until(lambda: len(cluster.all(CalibrationUpdated)) == 2)
        first, second = (one.calibration.scope for one in cluster.all(CalibrationUpdated))
        assert Precision.INT4 not in first.precisions and Precision.INT4 in second.precisions
        assert second.computed_in == ((Precision.INT4, Precision.FP32),)
        await cluster.tell(probe, CalibrationRequested(calibration_id=UUID(int=7), node="torch-cpu-1t"))
        await cluster.until(lambda: len(cluster.all(CalibrationUpdated)) == 3)
    quantised = [key for key in probe.ran if "int4" in key]
    assert len(probe.ran) == MODELS + len(quantised) and len(set(quantised)) == len(quantised) == 3


async def test_without_room_it_waits_with_the_reason_and_goes_on_when_there_is(cluster: Cluster) -> None:
    taken = MemoryRequested(hold_id=RUN, rig="x", gpu_type="cpu-1t", bytes=10 * SIZE, keep_s=60)
    await cluster.publish(taken)
    probe = FakeProbe()
    async with cluster.calibrating(probe):
        await cluster.until(lambda: bool(cluster.all(CalibrationProgressed)))
        waiting = cluster.all(CalibrationProgressed)[0]
        assert "waiting" in waiting.problem and "n/0 has most" in waiting.problem
        assert not waiting.finished and probe.ran == []
        await cluster.publish(MemoryFreed(hold_id=RUN))
        assert (await cluster.until_finished()).num_done == MODELS


async def test_a_model_under_way_gives_way_to_a_deployment_that_needs_its_memory(cluster: Cluster) -> None:
    probe = SlowProbe()
    async with cluster.calibrating(probe, keep_s=0.5):
        await cluster.until(lambda: len(probe.ran) == 1)
        await cluster.publish(computed(candidate(gpu_type="cpu-1t", stage=memory(layer=120))))
        assert len(cluster.all(DeploymentWaiting)) == 1
        await cluster.until(lambda: bool(cluster.all(MemoryFreed)) and bool(cluster.all(PlacementReserved)))
        await cluster.until(lambda: "a deployment needs" in cluster.all(CalibrationProgressed)[-1].problem)
        assert len(cluster.all(PlacementReserved)) == 1


async def test_an_intent_is_measured_for_at_once_and_the_model_under_way_is_run_again(cluster: Cluster) -> None:
    probe, items = SlowProbe(), [item.key for item in cluster.programme(SIZE)]
    handlers = cluster.profiler(probe)
    calibrating = asyncio.create_task(handlers.calibrating.serve(at_start=True))
    await cluster.until(lambda: len(probe.ran) == 1)
    answer = await asyncio.wait_for(handlers.on_intent_accepted(accepted(Precision.FP32, Precision.BF16)), 5)
    assert isinstance(answer, FingerprintMeasured) and probe.ran == items[:1]
    assert [progress.detail for progress in cluster.all(MeasurementProgressed)] == [
        "measuring fp32 on cpu-1t (1 of 2)", "measuring bf16 on cpu-1t (2 of 2)"
    ]  # fmt: skip
    probe.gate.set()
    last = await cluster.until_finished()
    calibrating.cancel()
    await end(calibrating, 0.2)
    assert probe.ran == [items[0], *items] and last.num_done == len(items)
    assert any("a deployment is on its way" in news.problem for news in cluster.all(CalibrationProgressed))
    assert cluster.held_bytes() == 0


async def test_a_model_under_way_is_left_alone_by_an_intent_whose_model_was_measured_before(cluster: Cluster) -> None:
    probe = SlowProbe()
    await cluster.tell(probe, accepted())
    handlers = cluster.profiler(probe)
    calibrating = asyncio.create_task(handlers.calibrating.serve(at_start=True))
    await cluster.until(lambda: len(probe.ran) == 1)
    assert isinstance(await handlers.on_intent_accepted(accepted()), FingerprintMeasured)
    probe.gate.set()
    await cluster.until_finished()
    calibrating.cancel()
    await end(calibrating, 0.2)
    assert probe.ran == [item.key for item in cluster.programme(SIZE)]


async def test_a_gpu_too_small_for_the_programme_ends_it_with_what_to_do(cluster: Cluster) -> None:
    await cluster.node(SIZE // 2)
    async with cluster.calibrating(FakeProbe()):
        last = await cluster.until_finished()
    assert "give the GPU more memory" in last.problem
    assert cluster.all(CalibrationUpdated) == []


async def test_a_model_that_cannot_run_is_skipped_and_tried_again_only_when_asked(cluster: Cluster) -> None:
    keys = [item.key for item in cluster.programme(SIZE)]
    probe = SlowProbe(too_large=keys[0])
    probe.gate.set()
    async with cluster.calibrating(probe):
        last = await cluster.until_finished()
        assert "out of memory" in last.problem and last.num_done == MODELS
        assert probe.ran == keys
        probe.too_large = ""
        await cluster.tell(probe, CalibrationRequested(calibration_id=RUN, node="torch-cpu-1t"))
        await cluster.until(lambda: probe.ran == [*keys, keys[0]])


async def test_a_spent_budget_ends_it_usable_and_the_next_goes_on(cluster: Cluster) -> None:
    probe = FakeProbe()
    async with cluster.calibrating(probe, at_start=False):
        await cluster.tell(probe, CalibrationRequested(calibration_id=RUN, node="torch-cpu-1t", budget_s=0.5))
        last = await cluster.until_finished()
        assert (last.num_done, last.num_planned) == (2, 2)
        assert "1 models left" in last.problem
        assert len(cluster.all(CalibrationUpdated)) == 1
        again = CalibrationRequested(calibration_id=UUID(int=7), node="torch-cpu-1t")
        await cluster.tell(probe, again)
        await cluster.until(lambda: len(cluster.all(CalibrationUpdated)) == 2)
    assert probe.ran == [item.key for item in cluster.programme(SIZE)]
    assert cluster.all(CalibrationUpdated)[1].calibration.version == 2


async def test_who_follows_a_calibration_hears_that_another_took_its_place(cluster: Cluster) -> None:
    probe = SlowProbe()
    async with cluster.calibrating(probe):
        await cluster.until(lambda: len(probe.ran) == 1)
        first = cluster.all(CalibrationProgressed)[0].calibration_id
        await cluster.tell(probe, CalibrationRequested(calibration_id=RUN, node="torch-cpu-1t"))
        assert (await cluster.until_finished()).calibration_id == first
        assert await cluster.tell(probe, CalibrationRequested(calibration_id=RUN, node="torch-cpu-1t")) == []
        probe.gate.set()
        await cluster.until(
            lambda: [n.calibration_id for n in cluster.all(CalibrationProgressed) if n.finished][-1:] == [RUN]
        )
