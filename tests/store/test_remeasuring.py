"""What others disturbed is measured again on a quiet device, a few times at most; a real Redis keeps what is due."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis

from maveriq.contracts import (
    CalibrationUpdated,
    Fingerprint,
    MemoryHeld,
    MemoryRequested,
    Message,
    Precision,
    RunSample,
)
from maveriq_profiler.__main__ import whole_programme
from maveriq_profiler.borrowing import Borrowing
from maveriq_profiler.calibrating import ran
from maveriq_profiler.catalog import Catalog, Key
from maveriq_profiler.formats import Format
from maveriq_profiler.measuring import ProbeFailed
from maveriq_profiler.orders import Reading
from maveriq_profiler.pool import MAX_TRIES, Pool
from maveriq_profiler.programme import Item
from maveriq_profiler.refitting import Refitting
from maveriq_profiler.remeasuring import Remeasuring
from maveriq_profiler.samples import Samples
from tests.unit.profiler.rigs import FACTS, FakeProbe, rig

POOL = Pool("torch", "2.13-r1", "cpu-1t", 8)
FULL = Format(Precision.FP32, Precision.FP32)
KEY = Key.of(FACTS.shape_key, POOL, FULL)
READING = Reading(facts=FACTS, config_json="{}")


@dataclass
class Disturbed(FakeProbe):
    """Others take these shares of the device, one measurement after the other; then the last for ever."""

    shares: list[float] = field(default_factory=lambda: [0.6])

    async def measure(self, reading: Reading, wanted: Format) -> Fingerprint:
        found = await super().measure(reading, wanted)
        others = self._next()
        changed = {"others": others, "decode_ms": 2.0 / (1 - others)}
        return found.model_copy(update={"samples": tuple(s.model_copy(update=changed) for s in found.samples)})

    async def run_item(self, item: Item, *, device: str) -> tuple[RunSample, ...]:
        found, others = await super().run_item(item, device=device), self._next()
        return tuple(sample.model_copy(update={"others": others}) for sample in found)

    def _next(self) -> float:
        return self.shares.pop(0) if len(self.shares) > 1 else self.shares[0]


@dataclass
class Device:
    share: float | None = 0.0

    def look(self) -> float | None:
        return self.share


class Bench:
    def __init__(self, redis: Redis, *shares: float) -> None:
        self.probe = Disturbed(shares=list(shares))
        self.device = Device()
        self.said: list[Message] = []
        self.catalog, self.samples = Catalog(redis), Samples(redis)
        self._borrowing = Borrowing(redis, self._publish, rig(), {})
        refitting = Refitting(self.samples, lambda: datetime.now(UTC))
        self.remeasuring = Remeasuring(
            redis, POOL, self.probe, self.device, self.catalog, self.samples, self._borrowing, refitting,
            self._publish, self._plan,
        )  # fmt: skip

    async def known(self) -> Fingerprint:
        """As an intent has it."""
        found = await self.catalog.get_or_measure(KEY, lambda: self.probe.measure(READING, FULL))
        await self.remeasuring.note(KEY, READING, found)
        return found

    async def one(self, times: int = 1) -> None:
        for _ in range(times):
            await self.remeasuring.one()

    def _plan(self, free_bytes: int, quantised: Collection[Precision]) -> tuple[Item, ...]:
        return whole_programme(rig(), free_bytes, 1)[:2]

    @property
    def items(self) -> tuple[Item, ...]:
        return self._plan(2**50, ())

    async def _publish(self, message: Message) -> None:
        self.said.append(message)
        if isinstance(message, MemoryRequested):
            held = MemoryHeld(hold_id=message.hold_id, node=message.rig, gpu="n/cpu:0", largest_bytes=2**50)
            await self._borrowing.on_memory_held(held)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    connection = Redis.from_url(redis_url)
    yield connection
    await connection.aclose()


async def test_a_disturbed_fingerprint_gives_way_to_a_quiet_one_once_nobody_uses_the_device(redis: Redis) -> None:
    bench = Bench(redis, 0.6, 0.0)
    assert (await bench.known()).others == 0.6
    bench.device.share = 0.5
    await bench.one(3)
    assert (await bench.known()).others == 0.6
    bench.device.share = 0.01
    await bench.one(3)
    found = await bench.known()
    assert (found.others, found.samples[0].decode_ms) == (0.0, 2.0)
    assert len(bench.probe.measured) == 2


async def test_what_is_disturbed_each_time_is_measured_a_few_times_and_the_least_disturbed_is_kept(
    redis: Redis,
) -> None:
    bench = Bench(redis, 0.6, 0.3, 0.5)
    await bench.known()
    await bench.one(MAX_TRIES + 3)
    assert (await bench.known()).others == 0.3
    assert len(bench.probe.measured) == MAX_TRIES
    late = Bench(redis, 0.0)  # a profiler that starts anew does not begin again
    await late.known()
    await late.one(3)
    assert late.probe.measured == []


async def test_a_measurement_that_fails_counts_and_leaves_what_is_known(redis: Redis) -> None:
    bench = Bench(redis, 0.6)
    await bench.known()
    bench.probe.failure = "out of memory"
    await bench.one(MAX_TRIES + 3)
    assert (await bench.known()).others == 0.6
    with pytest.raises(ProbeFailed):
        await bench.probe.measure(READING, FULL)


async def test_a_quiet_measurement_is_never_made_again(redis: Redis) -> None:
    bench = Bench(redis, 0.02)
    await bench.known()
    await bench.one(3)
    assert len(bench.probe.measured) == 1


async def test_a_disturbed_model_of_the_programme_is_run_again_and_the_calibration_told(redis: Redis) -> None:
    bench = Bench(redis, 0.0, 0.7, 0.0)
    for item in bench.items:
        await bench.samples.keep_outcome(POOL, item.key, await ran(bench.probe, item, "cpu"))
    before = await bench.remeasuring.refitting.fit(POOL)
    assert before is not None and before.num_disturbed > 0
    await bench.one(3)
    outcomes = await bench.samples.outcomes(POOL)
    assert [outcomes[item.key].others for item in bench.items] == [0.0, 0.0]
    assert [outcomes[item.key].tries for item in bench.items] == [1, 2]
    (updated,) = [message for message in bench.said if isinstance(message, CalibrationUpdated)]
    assert updated.calibration.num_disturbed == 0
