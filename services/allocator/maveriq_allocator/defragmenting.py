"""Plans defragmentations from what is held, and makes their moves one after the other. Keys: see `keys`.

What was planned is kept for a day, so that a request that comes twice is answered alike, and a move that is asked for
again is the same move.
"""

import asyncio
import time
from dataclasses import dataclass, replace
from uuid import UUID

from maveriq.contracts import (
    DefragmentationProgressed,
    DefragmentationRequested,
    ReplicaMove,
)
from maveriq_allocator import keys, moving
from maveriq_allocator.choosing import choose
from maveriq_allocator.defrag import Bounds, Found, fewest
from maveriq_allocator.goals import Emptied, Goal, Seated
from maveriq_allocator.line import Line
from maveriq_allocator.movable import Movable, Moved, Place
from maveriq_allocator.record import Phase, Record
from maveriq_allocator.reservations import Outcome, Reservations
from maveriq_allocator.situation import Situation
from maveriq_allocator.store import Store
from maveriq_allocator.trying import Trying
from maveriq_allocator.waiting import Claim, Waiter

KEEP_S = 24 * 3600
MAX_WAITERS = 16  # of the line, for whom room is looked for
SEARCH_S = 20.0  # for all of them
MAX_STALE = 50


@dataclass(frozen=True, slots=True)
class Defragmenting:
    redis: Store
    reservations: Reservations
    line: Line
    trying: Trying

    async def plan(self, asked: DefragmentationRequested) -> DefragmentationProgressed:
        """The moves; what was planned under this id already."""
        known = await self.known(asked.defragmentation_id)
        if known is not None:
            return known
        told = await (self._emptying(asked, asked.free_gpu) if asked.free_gpu else self._making_room(asked))
        is_over = not asked.apply or bool(told.problem) or not told.moves
        return await self.keep(told.model_copy(update={"finished": is_over}))

    async def known(self, defragmentation_id: UUID) -> DefragmentationProgressed | None:
        text = await self.redis.get(keys.defragmentation(defragmentation_id))
        return None if text is None else DefragmentationProgressed.model_validate_json(text)

    async def keep(self, told: DefragmentationProgressed) -> DefragmentationProgressed:
        await self.redis.set(keys.defragmentation(told.defragmentation_id), told.model_dump_json(), ex=KEEP_S)
        return told

    async def progressed(self, defragmentation_id: UUID, num_done: int) -> DefragmentationProgressed | None:
        """So many moves are done; None: it is not known any more."""
        told = await self.known(defragmentation_id)
        if told is None or told.finished or num_done < told.num_done:
            return told
        is_over = num_done >= len(told.moves)
        return await self.keep(told.model_copy(update={"num_done": num_done, "finished": is_over}))

    async def stopped(self, defragmentation_id: UUID, problem: str) -> DefragmentationProgressed | None:
        """It goes no further: what is done stays done."""
        told = await self.known(defragmentation_id)
        if told is None or told.finished:
            return told
        return await self.keep(told.model_copy(update={"finished": True, "problem": problem}))

    async def move(self, defragmentation_id: UUID, number: int, move: ReplicaMove) -> Record | str:
        """Start the copy; the record then, or why that cannot be done."""
        for _ in range(MAX_STALE):
            before = await self.reservations.load(move.deployment_id)
            known = moving.from_where(before.record, move.token)
            if known is not None and known.defragmentation_id == defragmentation_id:
                return before.record
            old = before.record.holding(move.token)
            if old is None or old.phase is not Phase.READY or before.record.closing is not None:
                return f"replica {move.replica} of deployment {move.deployment_id} no longer serves where it did"
            place = Place(move.to_node, move.to_stages)
            after = moving.begun(before.record, defragmentation_id, number, old, place)
            outcome = await self.reservations.commit(before, after)
            if outcome is Outcome.DONE:
                return after
            if outcome is Outcome.TAKEN:
                return f"the place on node {move.to_node} was taken meanwhile"
            if outcome is not Outcome.STALE:
                return str(outcome)
        return f"others changed deployment {move.deployment_id} {MAX_STALE} times meanwhile"

    async def _emptying(self, asked: DefragmentationRequested, gpu: str) -> DefragmentationProgressed:
        situation = await self.trying.situation()
        told = _told(asked, f"free GPU {gpu}", free_gpu=gpu)
        states = [state for node in situation.nodes for state in node.gpus if state.gpu.id == gpu]
        if not states:
            problem = f"no node reports a GPU {gpu}; `maveriq gpus --json` has the ids"
            return told.model_copy(update={"problem": problem})
        movable = await self._movable(situation)
        ours = {(each.deployment_id, each.replica) for each in movable}
        if any(held.calibration for held in states[0].holdings):
            return told.model_copy(update={"problem": "a calibration holds memory of it; ask again when it has ended"})
        if any((held.deployment_id, held.replica) not in ours for held in states[0].holdings):
            problem = "a replica on it starts or drains; ask again when it serves or is gone"
            return told.model_copy(update={"problem": problem})
        return await self._found(told, situation, movable, Emptied(gpu), _in_time())

    async def _making_room(self, asked: DefragmentationRequested) -> DefragmentationProgressed:
        """For the first in the line for whom moves make room."""
        situation = await self.trying.situation()
        movable = await self._movable(situation)
        told = _told(asked, "make room for a deployment that waits")
        waiters = await self._line()
        if not waiters:
            return told.model_copy(update={"problem": "no deployment waits for memory"})
        bounds = _in_time()
        for waiter in waiters:
            intent = waiter.plan.admission.intent
            goal = f"make room for {intent.model} {str(waiter.deployment_id)[:8]}"
            mine = told.model_copy(update={"goal": goal, "waiter": waiter.deployment_id})
            found = await self._found(
                mine,
                situation,
                movable,
                Seated(waiter.plan.plan, waiter.num_replicas, waiter.start, time.thread_time),
                bounds,
            )
            if not found.problem:
                if asked.apply:
                    await self._claim(waiter, situation, found)
                return found
        problem = f"no moves make room for any of the {len(waiters)} that wait"
        return told.model_copy(update={"problem": problem})

    async def _found(
        self, told: DefragmentationProgressed, situation: Situation, movable: list[Movable], goal: Goal, bounds: Bounds
    ) -> DefragmentationProgressed:
        found: Found = await asyncio.to_thread(fewest, situation.free(), movable, goal, bounds)
        if found.moves is None:
            proof = "no set of moves does" if found.is_fewest else "none was found, and not all could be tried"
            return told.model_copy(update={"problem": f"it cannot be done: {proof}"})
        moves = tuple(_move(each) for each in found.moves)
        return told.model_copy(update={"moves": moves, "is_fewest": found.is_fewest})

    async def _movable(self, situation: Situation) -> list[Movable]:
        """The replicas that serve, and do not move already."""
        owners = {h.deployment_id for n in situation.nodes for s in n.gpus for h in s.holdings if not h.calibration}
        found: list[Movable] = []
        for record in [loaded.record for loaded in await self.reservations.load_all(sorted(owners))]:
            for held in record.held if record.closing is None else ():
                at = held.placement
                if held.phase is Phase.READY and at.facts is not None and not moving.is_replaced(record, held):
                    found.append(
                        Movable(record.deployment_id, at.replica, at.token, at.candidate, at.facts, at.node, at.stages)
                    )
        return found

    async def _line(self) -> list[Waiter]:
        """The first of those that wait."""
        waiters: list[Waiter] = []
        for deployment_id in (await self.line.waiters())[:MAX_WAITERS]:
            record = (await self.reservations.load(deployment_id)).record
            plan = await self.reservations.plan(deployment_id)
            if record.waiting is not None and plan is not None:
                taught = await self.trying.lessons.taught(plan)
                waiters.append(Waiter(deployment_id, taught, record.waiting, "", not record.held))
        return waiters

    async def _claim(self, waiter: Waiter, situation: Situation, found: DefragmentationProgressed) -> None:
        """Keep the seats that come free for it."""
        freed: dict[str, int] = {}
        for move in found.moves:
            for stage, sign in [(s, 1) for s in move.stages] + [(s, -1) for s in move.to_stages]:
                for gpu in stage.gpus:
                    freed[gpu] = freed.get(gpu, 0) + sign * stage.reserved_bytes
        nodes = [
            replace(n, fragments=tuple(replace(f, free_bytes=f.free_bytes + freed.get(f.gpu, 0)) for f in n.fragments))
            for n in situation.free()
        ]
        choice = choose(
            waiter.plan.plan, nodes, num_replicas=waiter.num_replicas, start=waiter.start, clock=time.thread_time
        )
        if choice is not None:
            gpus = frozenset(gpu for seat in choice.seats for stage in seat.stages for gpu in stage.gpus)
            await self.line.keep_claim(Claim(waiter.deployment_id, waiter.place, gpus))


def _in_time() -> Bounds:
    until_s = time.monotonic() + SEARCH_S
    return Bounds(is_late=lambda: time.monotonic() > until_s)


def _told(asked: DefragmentationRequested, goal: str, free_gpu: str | None = None) -> DefragmentationProgressed:
    return DefragmentationProgressed(
        defragmentation_id=asked.defragmentation_id, apply=asked.apply, goal=goal, free_gpu=free_gpu
    )


def _move(moved: Moved) -> ReplicaMove:
    what = moved.what
    return ReplicaMove(
        deployment_id=what.deployment_id, replica=what.replica, token=what.token, node=what.node, stages=what.stages,
        to_node=moved.to.node, to_stages=moved.to.stages,
    )  # fmt: skip
