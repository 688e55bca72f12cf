"""One allocator and the profilers of one GPU type, on a real Redis; every message goes through its JSON."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from redis.asyncio import Redis

from maveriq.bus.handling import decode, replies
from maveriq.contracts import (
    Admission,
    CalibrationProgressed,
    DeploymentKept,
    Intent,
    IntentAccepted,
    InventoryChanged,
    MemoryHeld,
    Message,
    Model,
    Precision,
    Variant,
)
from maveriq.running import end
from maveriq.topology import ALLOCATOR, PROFILER
from maveriq_allocator.__main__ import bound as allocator_bound
from maveriq_allocator.__main__ import wire as allocator_wire
from maveriq_allocator.settings import Settings as AllocatorSettings
from maveriq_allocator.store import connect
from maveriq_profiler.__main__ import bound, whole_programme, wire
from maveriq_profiler.borrowing import Borrowing
from maveriq_profiler.children import Children
from maveriq_profiler.measuring import ProbeFailed
from maveriq_profiler.programme import Item
from maveriq_profiler.settings import Settings
from tests.unit.allocator.plans import reported
from tests.unit.profiler.rigs import FakeProbe, rig

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


def accepted(*precisions: Precision, dry_run: bool = False) -> IntentAccepted:
    variants = tuple(Variant(precision=precision, accuracy=1.0) for precision in precisions or (Precision.FP32,))
    model = Model(name="tiny", source="/m", variants=variants)
    admission = Admission(intent=Intent(model="tiny"), model=model, dry_run=dry_run)
    return IntentAccepted(deployment_id=DEPLOYMENT, admission=admission)
