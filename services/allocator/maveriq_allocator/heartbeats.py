"""Messages about whether what is held still runs: in, and what they cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maveriq.bus import Handler
from maveriq.contracts import Message, PlacementConfirmed, ReplicaLost, SweepDue
from maveriq_allocator import adopting, lifecycle
from maveriq_allocator.handlers import Handlers
from maveriq_allocator.placing import MAX_STALE, Overtaken
from maveriq_allocator.record import Record, Stray
from maveriq_allocator.reservations import Outcome
from maveriq_allocator.trying import Loss


@dataclass(frozen=True, slots=True)
class Heartbeats:
    handlers: Handlers

    async def on_sweep_due(self, message: SweepDue) -> Sequence[Message]:
        """Say what is lost with its worker, and what is held there still, which no report tells; also the time to look
        through the line of those that wait.
        """
        sweeping = self.handlers.sweeping
        silent = await sweeping.silent()
        changed = await self.handlers.inventory_changed([*silent])
        lost = [one for node, mark in silent.items() for one in await sweeping.lost(node, mark, message.mark)]
        return [*lost, *changed, *await self.handlers.surveying.due()]

    async def on_replica_lost(self, message: ReplicaLost) -> Sequence[Message]:
        """Reclaim it and seat it anew, on its node only where that still reports, and has lost just a GPU; its worker,
        if it comes back, is told to stop.
        """
        held = (await self.handlers.placing.reservations.load(message.deployment_id)).record.holding(message.token)
        nodes = await self.handlers.inventory.nodes(held.placement.nodes if held is not None else ())
        there = {state.gpu.id for node in nodes for state in node.gpus}
        has_all = held is None or all(gpu in there for stage in held.placement.stages for gpu in stage.gpus)
        loss = Loss(message.detail, blameless=True, node_lost=has_all)
        return await self.handlers.replaced(message.deployment_id, message.token, message.replica, message.node, loss)

    async def on_placement_confirmed(self, message: PlacementConfirmed) -> Sequence[Message]:
        """Take it back, or tell it to stop."""
        at = message.placement
        record = await self._adopt(message)
        changed = await self.handlers.inventory_changed(at.nodes)
        if adopting.is_known(record, at.token):
            return [*lifecycle.orders(record, replica=at.replica, node=at.node), *changed]
        return [lifecycle.drain(record, Stray(node=at.node, replica=at.replica, token=at.token)), *changed]

    async def _adopt(self, message: PlacementConfirmed) -> Record:
        at, reservations = message.placement, self.handlers.placing.reservations
        for _ in range(MAX_STALE):
            before = await reservations.load(message.deployment_id)
            if adopting.is_known(before.record, at.token) or not adopting.is_wanted(
                before.record, at.token, at.replica
            ):
                return before.record
            now_s = int((await self.handlers.placing.line.now()).timestamp())
            after = adopting.adopted(before.record, at, now_s)
            plan = None if before.version else adopting.plan_of(message.deployment_id, at)
            outcome = await reservations.adopt(before, after, plan, at.node)
            if outcome is Outcome.DONE:
                return after
            if outcome is not Outcome.STALE:  # it ended meanwhile, or others were promised its bytes
                return before.record
        raise Overtaken(str(message.deployment_id))

    def all(self) -> list[Handler[Any]]:
        return [
            Handler(SweepDue, self.on_sweep_due),
            Handler(ReplicaLost, self.on_replica_lost),
            Handler(PlacementConfirmed, self.on_placement_confirmed),
        ]
