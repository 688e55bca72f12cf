"""Calibrates this rig: goes through the programme in borrowed memory until it is done or the budget is spent.

What was measured is never measured again, whoever measured it, so a run that was cut short goes on where it stopped.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import structlog
from redis.exceptions import RedisError

from maveriq.contracts import (
    CalibrationProgressed,
    CalibrationRequested,
    CalibrationUpdated,
    Message,
    Precision,
    RunSample,
)
from maveriq_profiler.agenda import Agenda
from maveriq_profiler.borrowing import Borrowing, NoMemory
from maveriq_profiler.measuring import ProbeFailed, Rig
from maveriq_profiler.pool import Outcome, Pool
from maveriq_profiler.preemption import Preempted, Preemption
from maveriq_profiler.programme import Item
from maveriq_profiler.refitting import Refitting
from maveriq_profiler.samples import Run, Samples

log = structlog.get_logger()


class ItemProbe(Protocol):
    """Runs one item of the programme."""

    async def run_item(self, item: Item, *, device: str) -> tuple[RunSample, ...]:
        """Raises ProbeFailed, e.g. for lack of memory."""
        ...


async def ran(probe: ItemProbe, item: Item, device: str) -> Outcome:
    """An item, and what it took."""
    begun_s = time.monotonic()
    found: tuple[RunSample, ...] = ()
    problem = ""
    try:
        found = await probe.run_item(item, device=device)
    except ProbeFailed as error:
        log.warning("calibration goes on without a model", item=item.key, error=str(error))
        problem = str(error)
    return Outcome(samples=found, cost_s=(time.monotonic() - begun_s) * item.num_gpus, problem=problem)


@dataclass(slots=True)
class Calibrating:
    rig: Rig
    probe: ItemProbe
    samples: Samples
    borrowing: Borrowing
    refitting: Refitting
    publish: Callable[[Message], Awaitable[None]]
    plan: Callable[[int, Collection[Precision]], Sequence[Item]]
    """Bytes that a GPU could have free, and quantised precisions -> the programme, most telling first."""
    budget_s: float
    idle: Callable[[], Coroutine[Any, Any, None]]
    """Done each time that nothing was asked for `wait_s`."""
    wait_s: float = 15.0
    """Between two looks whether memory became free."""
    preemption: Preemption = field(default_factory=Preemption)
    _asked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pool(self) -> Pool:
        return Pool(self.rig.engine, self.rig.engine_version, self.rig.gpu_type, self.rig.max_pp)

    async def on_calibration_requested(self, message: CalibrationRequested) -> CalibrationProgressed | None:
        """It takes the place of a run under way, which had the same to do; whoever follows that one is told."""
        before = await self.samples.run(self.pool)
        if before is not None and before.calibration_id == message.calibration_id:
            return None  # the message came again
        await self.samples.want(self.pool, message.precisions)
        await self.samples.begin(self.pool, message.calibration_id, message.budget_s or self.budget_s)
        self._asked.set()
        if before is None or before.ended:
            return None
        agenda = Agenda((), {}, before.spent_s, before.budget_s)
        return self._told(before, agenda, problem="another calibration goes on in its place", finished=True)

    async def is_new(self) -> bool:
        """Nothing is known of the GPU type."""
        return await self.samples.calibration(self.pool) is None

    async def serve(self, *, at_start: bool) -> None:
        """Until cancelled.

        Args:
            at_start: calibrate a GPU type that is not calibrated without being asked.
        """
        run, known = await self.samples.run(self.pool), await self.samples.calibration(self.pool)
        if known is not None:  # ingress may have begun anew since it was fitted
            await self.publish(CalibrationUpdated(calibration=known))
        elif at_start and (run is None or run.ended):
            await self.samples.begin(self.pool, uuid4(), self.budget_s)
        while True:
            try:
                await self.preemption.after_deployments()
                self._asked.clear()
                run = await self.samples.run(self.pool)
                if run is not None and not run.ended:
                    await self._step(run)
                else:
                    await self._wait()
                    if not self._asked.is_set():
                        with suppress(Preempted):
                            await self.preemption.preemptible(self.idle())
            except RedisError as error:
                log.warning("the store does not answer", error=repr(error))
                await asyncio.sleep(self.wait_s)

    async def _wait(self) -> None:
        """Until asked, or for a while: another profiler of this GPU type may have heard the question."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.wait_s):
                await self._asked.wait()

    async def _step(self, run: Run) -> None:
        """One item more, or the end of the run."""
        agenda = Agenda((), {}, run.spent_s, run.budget_s)
        try:
            agenda = await self._agenda(run)
            if agenda.next_items:
                await self._measure_one(run, agenda)
            else:
                await self._end(run, agenda)
        except NoMemory as error:
            await self.publish(self._told(run, agenda, problem=f"waiting: {error}"))
            await self._wait()
        except Preempted as error:
            await self.publish(self._told(run, agenda, problem=f"waiting: {error}"))

    async def _agenda(self, run: Run) -> Agenda:
        """Raises NoMemory: no GPU is there."""
        items = self.plan(await self.borrowing.largest_bytes(), await self.samples.wanted(self.pool))
        return Agenda(tuple(items), await self.samples.outcomes(self.pool), run.spent_s, run.budget_s)

    async def _measure_one(self, run: Run, agenda: Agenda) -> None:
        """The first item that can be measured now. Raises NoMemory: there is none; Preempted."""
        problem = NoMemory("others measure what is left")
        for item in agenda.next_items:
            async with self.samples.claimed(self.pool, item.key) as ours:
                if not ours:
                    continue
                try:
                    async with self.borrowing.borrowed(item.bytes_needed, item.num_gpus) as device:
                        await self.publish(self._told(run, agenda, measuring=item.key))
                        outcome = await self.preemption.preemptible(ran(self.probe, item, device))
                        await self.samples.keep_outcome(self.pool, item.key, outcome)
                        return
                except NoMemory as error:
                    problem = error
        raise problem

    async def _end(self, run: Run, agenda: Agenda) -> None:
        """The fit first: whoever hears of the end finds it."""
        fitted = await self.refitting.fit(self.pool)
        if fitted is not None:
            await self.publish(CalibrationUpdated(calibration=fitted))
        await self.publish(self._told(run, agenda, problem=agenda.left_undone, finished=True))
        await self.samples.end(self.pool, run.calibration_id)

    def _told(
        self, run: Run, agenda: Agenda, *, measuring: str = "", problem: str = "", finished: bool = False
    ) -> CalibrationProgressed:
        return CalibrationProgressed(
            calibration_id=run.calibration_id,
            node=self.rig.name,
            engine=self.rig.engine,
            gpu_type=self.rig.gpu_type,
            num_done=agenda.num_done,
            num_planned=agenda.num_planned,
            spent_s=run.spent_s,
            budget_s=run.budget_s,
            measuring=measuring,
            problem=problem,
            finished=finished,
        )
