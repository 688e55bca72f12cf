"""Measures again what others disturbed, one at a time, once nobody uses the device. In Redis:

maveriq:profiler:fingerprints-disturbed:<pool>   hash: key of a fingerprint -> Disturbed; it goes when it was measured
                                                 undisturbed
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from maveriq.contracts import QUIET_SHARE, CalibrationUpdated, Fingerprint, Message, Precision, Value
from maveriq_profiler.borrowing import Borrowing, NoMemory
from maveriq_profiler.calibrating import ran
from maveriq_profiler.catalog import Catalog, Key
from maveriq_profiler.folding import of_fingerprint
from maveriq_profiler.formats import Format
from maveriq_profiler.measuring import Probe, ProbeFailed
from maveriq_profiler.neighbours import Neighbours
from maveriq_profiler.orders import Reading
from maveriq_profiler.pool import MAX_TRIES, Outcome, Pool
from maveriq_profiler.programme import Item
from maveriq_profiler.refitting import Refitting
from maveriq_profiler.samples import Samples, is_fingerprint

log = structlog.get_logger()


class Disturbed(Value):
    """All that measuring it again takes."""

    reading: Reading
    precision: Precision
    kv_precision: Precision
    tries: int = 1


@dataclass(slots=True)
class Remeasuring:
    redis: Any
    pool: Pool
    probe: Probe
    anyone: Neighbours
    """Sees all that use the device."""
    catalog: Catalog
    samples: Samples
    borrowing: Borrowing
    refitting: Refitting
    publish: Callable[[Message], Awaitable[None]]
    plan: Callable[[int, Collection[Precision]], Sequence[Item]]

    async def note(self, key: Key, reading: Reading, found: Fingerprint) -> None:
        """Again is harmless."""
        if found.others > QUIET_SHARE:
            due = Disturbed(reading=reading, precision=found.precision, kv_precision=found.kv_precision)
            await self.redis.hsetnx(self._due, key.named, due.model_dump_json())

    async def one(self) -> None:
        """If nobody used the device since this was last asked, and something is due."""
        share = self.anyone.look()
        if share is None or share > QUIET_SHARE:
            return
        try:
            if await self._fingerprint() or await self._item():
                await self._sharpen()
        except NoMemory as error:
            log.info("measured again later", error=str(error))
        finally:
            self.anyone.look()  # what this took is not others'

    async def _sharpen(self) -> None:
        """What was never calibrated is not by chance."""
        known = await self.samples.calibration(self.pool)
        fitted = None if known is None else await self.refitting.fit(self.pool)
        if fitted is not None:
            await self.publish(CalibrationUpdated(calibration=fitted))

    async def _fingerprint(self) -> bool:
        for name, text in (await self.redis.hgetall(self._due)).items():
            due = Disturbed.model_validate_json(text)
            if due.tries >= MAX_TRIES:
                continue
            wanted = Format(due.precision, due.kv_precision)
            key = Key.of(due.reading.facts.shape_key, self.pool, wanted)
            measure = partial(self.probe.measure, due.reading, wanted)
            try:
                found = await self.catalog.measure_again(key, measure)
            except ProbeFailed as error:
                log.warning("not measured again", error=str(error))
                found = None
            tried = due.model_copy(update={"tries": due.tries + 1})
            await self.redis.hset(self._due, name, tried.model_dump_json())
            if found is None:
                continue
            if found.others <= QUIET_SHARE:
                await self.redis.hdel(self._due, name)
            if self.probe.rig.teaches(wanted):
                told = of_fingerprint(due.reading.facts, found)
                await self.samples.keep_fingerprint(self.pool, key.named, told, found.cost_s)
            return True
        return False

    async def _item(self) -> bool:
        """Raises NoMemory."""
        known = await self.samples.outcomes(self.pool)
        due = {key: outcome for key, outcome in known.items() if outcome.is_due_again and not is_fingerprint(key)}
        items = await self._programme() if due else ()
        for item in (item for item in items if item.key in due):
            async with self.samples.claimed(self.pool, item.key, again=True) as ours:
                if ours:
                    async with self.borrowing.borrowed(item.bytes_needed, item.num_gpus) as device:
                        again: Outcome = await ran(self.probe, item, device)
                        await self.samples.replace_outcome(self.pool, item.key, due[item.key].after(again))
                        return True
        return False

    async def _programme(self) -> Sequence[Item]:
        return self.plan(await self.borrowing.largest_bytes(), await self.samples.wanted(self.pool))

    @property
    def _due(self) -> str:
        return f"maveriq:profiler:fingerprints-disturbed:{self.pool.name}"
