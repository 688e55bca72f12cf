"""Looks through the line of those that wait for memory, and says who is to be tried now. Places nothing itself.

Called when memory came back, and every few seconds for what no message tells: time that is over, a node that is back,
an allocator that died over a survey. What it returns may be lost or come twice: the next survey returns it again, and a
try is idempotent.
"""

import asyncio
from dataclasses import dataclass, replace
from uuid import UUID

from maveriq.contracts import PlacementRequested, PlanComputed
from maveriq_allocator.line import Line
from maveriq_allocator.reservations import Reservations
from maveriq_allocator.trying import Trying
from maveriq_allocator.waiting import Survey, Waiter, survey

MAX_LOOKED_AT = 256  # of the line in one survey: they come first, and each takes milliseconds
MAX_ROUNDS = 3  # surveys in a row, when memory keeps coming back meanwhile; then the next message looks again


@dataclass(frozen=True, slots=True)
class Surveying:
    reservations: Reservations
    line: Line
    trying: Trying

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
        alike: dict[str, PlanComputed] = {}  # many are of the same plan, which is long
        line: list[Waiter] = []
        for deployment_id in (await self.line.waiters())[:MAX_LOOKED_AT]:
            loaded = await self.reservations.load(deployment_id)
            waiting, text = loaded.record.waiting, await self.reservations.plan_text(deployment_id)
            if waiting is None or text is None:
                await self.line.leave(deployment_id, loaded.version)
                continue
            key = text.replace(str(deployment_id), "")
            if key not in alike:
                alike[key] = await self.trying.lessons.taught(PlanComputed.model_validate_json(text))
            waiter = Waiter(deployment_id, alike[key], waiting, "", not loaded.record.held)
            kept = frozenset[str]() if claim is None else claim.keeps_from(deployment_id, waiter.place)
            why = await self.trying.reason(
                waiter.plan, replace(situation, kept=kept), waiter.num_replicas, waiter.start
            )
            line.append(replace(waiter, detail=why))
        now = await self.line.now()
        return await asyncio.to_thread(survey, line, situation.free(), situation.emptied(), now, claim)
