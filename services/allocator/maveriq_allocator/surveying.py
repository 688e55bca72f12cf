"""Looks through the line of those that wait for memory, and says who is to be tried now. Places nothing itself.

Called when memory came back, and every few seconds for what no message tells: time that is over, a node that is back,
an allocator that died over a survey. What it returns may be lost or come twice: the next survey returns it again, and a
try is idempotent.
"""

import asyncio
import time
from dataclasses import dataclass, field, replace
from uuid import UUID

from maveriq.contracts import PlacementRequested, PlanComputed
from maveriq_allocator.line import Line
from maveriq_allocator.reservations import Reservations
from maveriq_allocator.trying import Trying
from maveriq_allocator.waiting import Survey, Waiter, Waiting, survey

MAX_LOOKED_AT = 256  # of the line in one survey: they come first, and each takes milliseconds
MAX_ROUNDS = 3  # surveys in a row, when memory keeps coming back meanwhile; then the next message looks again


@dataclass(frozen=True, slots=True)
class Surveying:
    reservations: Reservations
    line: Line
    trying: Trying
    _plans: dict[UUID, "_Known"] = field(default_factory=dict[UUID, "_Known"])

    async def due(self) -> list[PlacementRequested]:
        """Who is to be tried now, in order; nobody where another allocator is looking: it sees the same."""
        if await self.line.is_empty() or (seen := await self.line.begin_survey()) is None:
            return []
        due: dict[UUID, None] = {}
        for _ in range(MAX_ROUNDS):
            found = await self._survey()
            due |= dict.fromkeys(found.due)
            await self.line.keep_claim(found.claim)
            news = await self.line.end_survey(seen)
            if news is None:
                break
            seen = news
        return [PlacementRequested(deployment_id=deployment_id) for deployment_id in due]

    async def _survey(self) -> Survey:
        situation = await self.trying.situation()
        claim = await self.line.claim()
        reasons: dict[tuple[str, int | None, int, frozenset[str]], str] = {}  # many want the same, and lack the same
        taught: dict[str, PlanComputed] = {}
        line: list[Waiter] = []
        for deployment_id, waiting, known, serves in await self._line():
            if known.alike not in taught:
                taught[known.alike] = await self.trying.lessons.taught(known.plan)
            waiter = Waiter(deployment_id, taught[known.alike], waiting, "", not serves)
            kept = frozenset[str]() if claim is None else claim.keeps_from(deployment_id, waiter.place)
            lack = (known.alike, waiter.num_replicas, waiter.start, kept)
            if lack not in reasons:
                facing = replace(situation, kept=kept)
                reasons[lack] = await self.trying.reason(waiter.plan, facing, waiter.num_replicas, waiter.start)
            line.append(replace(waiter, detail=reasons[lack]))
        now = await self.line.now()
        return await asyncio.to_thread(
            survey, line, situation.free(), situation.emptied(), now, claim, time.thread_time
        )

    async def _line(self) -> list[tuple[UUID, Waiting, "_Known", bool]]:
        """Who waits, in order, with its plan, and whether some of it serves; who does not wait leaves the line."""
        ids = (await self.line.waiters())[:MAX_LOOKED_AT]
        found: list[tuple[UUID, Waiting, _Known, bool]] = []
        for deployment_id, loaded in zip(ids, await self.reservations.load_all(ids), strict=True):
            waiting, known = loaded.record.waiting, await self._known(deployment_id, loaded.version)
            if waiting is None or known is None:
                await self.line.leave(deployment_id, loaded.version)
            else:
                found.append((deployment_id, waiting, known, bool(loaded.record.held)))
        for gone in self._plans.keys() - set(ids):
            del self._plans[gone]
        return found

    async def _known(self, deployment_id: UUID, version: int) -> "_Known | None":
        """Its plan, which is long and changes only with its record."""
        known = self._plans.get(deployment_id)
        if known is None or known.version != version:
            text = await self.reservations.plan_text(deployment_id)
            if text is None:
                return None
            alike = text.replace(str(deployment_id), "")
            known = _Known(version, alike, PlanComputed.model_validate_json(text))
            self._plans[deployment_id] = known
        return known


@dataclass(frozen=True, slots=True)
class _Known:
    version: int
    """Of the record that it was read with."""
    alike: str
    """The plan as text, the same for all that want the same."""
    plan: PlanComputed
