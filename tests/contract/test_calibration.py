"""Calibration as its neighbours see it: the profiler's and the allocator's messages through JSON, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import pytest
from redis.asyncio import Redis

from maveriq.bus.handling import decode, replies
from maveriq.contracts import (
    Admission,
    CalibrationProgressed,
    CalibrationRequested,
    CalibrationUpdated,
    DeploymentKept,
    DeploymentWaiting,
    FingerprintMeasured,
    Intent,
    IntentAccepted,
    InventoryChanged,
    MeasurementProgressed,
    MeasurementRequested,
    MemoryFreed,
    MemoryHeld,
    MemoryRequested,
    Message,
    Model,
    PlacementReserved,
    Precision,
    PredictionMissed,
    Variant,
)
from maveriq.running import end
from maveriq.topology import ALLOCATOR, PROFILER
from maveriq_allocator.__main__ import bound as allocator_bound
from maveriq_allocator.__main__ import wire as allocator_wire
from maveriq_allocator.settings import Settings as AllocatorSettings
from maveriq_allocator.store import connect
from maveriq_profiler.__main__ import bound, seen, whole_programme, wire
from maveriq_profiler.borrowing import Borrowing
from maveriq_profiler.children import Children
from maveriq_profiler.measuring import ProbeFailed
from maveriq_profiler.pool import Outcome, Pool
from maveriq_profiler.programme import Item
from maveriq_profiler.settings import Settings
from tests.unit.allocator.plans import candidate, computed, memory, reported
from tests.unit.profiler.calibrations import calibration, decoded, report
from tests.unit.profiler.rigs import FACTS, FakeProbe, rig

M = TypeVar("M", bound=Message)
RUN = UUID("00000000-0000-4000-8000-0000000000aa")
DEPLOYMENT = UUID("00000000-0000-4000-8000-000000000001")
MODELS = 3
SIZE = 100  # bytes of each item


@dataclass
class SlowProbe(FakeProbe):
    """Runs an item when it is let; one of them may be too large."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    too_large: str = ""

    async def run_item(self, item: Item, *, device: str) -> Any:
        self.ran.append(item.key)
        await self.gate.wait()
        if item.key == self.too_large:
            raise ProbeFailed("out of memory")
        self.ran.pop()
        return await super().run_item(item, device=device)


class Cluster:
    """One allocator, and the profilers of one GPU type; every message goes through its JSON."""

    def __init__(self, redis_url: str) -> None:
        self.said: list[Message] = []
        self.redis = Redis.from_url(redis_url)
        self._store = connect(redis_url)
        wired = allocator_wire(self._store, AllocatorSettings(redis_url, 60.0))
        self._allocator = {h.message: h.run for h in allocator_bound(wired)}
        self._env = {"MAVERIQ_REDIS_URL": redis_url, "MAVERIQ_CALIBRATION_BUDGET_S": "1000"}

    async def node(self, total_bytes: int) -> None:
        await self.publish(reported("n", total_bytes, gpu_type="cpu-1t"))

    async def publish(self, message: Message) -> None:
        """What the broker would do with it."""
        sent = decode(type(message), message.topic, message.model_dump_json().encode())
        self.said.append(sent)
        if isinstance(sent, DeploymentKept):
            return  # it rests on the broker
        if type(sent) in self._allocator:
            for reply in replies(ALLOCATOR, await self._allocator[type(sent)](sent)):
                await self.publish(reply)
        elif isinstance(sent, MemoryHeld):
            await self.tell(FakeProbe(), sent)

    async def tell(self, probe: FakeProbe, message: Message) -> list[Message]:
        """A profiler's answer, which is published."""
        handlers = {h.message: h.run for h in bound(self.profiler(probe), Children(1))}
        cause = decode(type(message), message.topic, message.model_dump_json().encode())
        answers = list(replies(PROFILER, await handlers[type(message)](cause)))
        for answer in answers:
            await self.publish(answer)
        return answers

    def profiler(self, probe: FakeProbe) -> Any:
        handlers = wire(self.redis, self.publish, probe, Settings.from_env(self._env), {})
        handlers.calibrating.plan = self.programme
        handlers.calibrating.wait_s = 0.05
        return handlers

    def programme(self, free_bytes: int, quantised: Collection[Precision] = ()) -> tuple[Item, ...]:
        items = whole_programme(rig(), 2**50, 1)[:MODELS]
        items += tuple(item for item in whole_programme(rig(), 2**50, 1, quantised) if item.precision in quantised)
        mine = (item.model_copy(update={"bytes_needed": SIZE, "expected_s": 1.0}) for item in items)
        return tuple(item for item in mine if item.bytes_needed <= free_bytes)

    @asynccontextmanager
    async def calibrating(self, *probes: FakeProbe, at_start: bool = True, keep_s: float = 60.0) -> AsyncIterator[None]:
        """While the block runs; then the profilers are killed."""
        serving: list[asyncio.Task[None]] = []
        for probe in probes:
            calibrating = self.profiler(probe).calibrating
            calibrating.borrowing = Borrowing(self.redis, self.publish, probe.rig, {}, keep_s=keep_s)
            serving.append(asyncio.create_task(calibrating.serve(at_start=at_start)))
        try:
            yield
        finally:
            for task in serving:
                task.cancel()
            await asyncio.gather(*(end(task, 0.2) for task in serving))
            assert all(task.cancelled() for task in serving), serving

    def all(self, kind: type[M]) -> list[M]:
        return [message for message in self.said if isinstance(message, kind)]

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not check():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_finished(self) -> CalibrationProgressed:
        await self.until(lambda: any(news.finished for news in self.all(CalibrationProgressed)))
        return next(news for news in self.all(CalibrationProgressed) if news.finished)

    def held_bytes(self) -> int:
        (state,) = self.all(InventoryChanged)[-1].gpus
        return sum(holding.bytes for holding in state.holdings)

    async def close(self) -> None:
        await self.redis.aclose()
        await self._store.aclose()


@pytest.fixture
async def cluster(redis_url: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(redis_url)
    await cluster.node(10 * SIZE)
    yield cluster
    await cluster.close()


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


def accepted(*precisions: Precision, dry_run: bool = False) -> IntentAccepted:
    variants = tuple(Variant(precision=precision, accuracy=1.0) for precision in precisions or (Precision.FP32,))
    model = Model(name="tiny", source="/m", variants=variants)
    admission = Admission(intent=Intent(model="tiny"), model=model, dry_run=dry_run)
    return IntentAccepted(deployment_id=DEPLOYMENT, admission=admission)


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
