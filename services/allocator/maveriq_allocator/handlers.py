"""The allocator's messages in, and what they cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from maveriq.contracts import (
    GpuState,
    InventoryChanged,
    MemoryFreed,
    MemoryHeld,
    MemoryRequested,
    Message,
    MoveRequested,
    NodeReported,
    NodeStarted,
    PlacementRequested,
    PlanComputed,
    ReleaseAccepted,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
)
from maveriq_allocator import adopting, copies, lifecycle, moving
from maveriq_allocator.defragmenting import Defragmenting
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.lending import Lending
from maveriq_allocator.node_state import Snapshot
from maveriq_allocator.placing import Placing
from maveriq_allocator.record import Move, Stray
from maveriq_allocator.surveying import Surveying
from maveriq_allocator.sweeping import Sweeping
from maveriq_allocator.trying import Loss
from maveriq_allocator.waiting import has_more


@dataclass(frozen=True, slots=True)
class Handlers:
    inventory: Inventory
    placing: Placing
    lending: Lending
    surveying: Surveying
    sweeping: Sweeping
    defragmenting: Defragmenting

    async def on_plan_computed(self, message: PlanComputed) -> Sequence[Message]:
        """Reserve the first candidate that fits for all replicas, or wait; of what is placed, keep the plan."""
        record = await self.placing.place(message)
        changed = await self.inventory_changed(lifecycle.changed_nodes(record))
        copy = copies.copied(record, message, await self.placing.line.now(), uuid4())
        kept = [] if record.closing is not None else [copy]
        return [*kept, *lifecycle.orders(record), *lifecycle.outlook(record), *changed]

    async def on_placement_requested(self, message: PlacementRequested) -> Sequence[Message]:
        """Try again to seat what waits."""
        record = await self.placing.retry(message.deployment_id)
        changed = await self.inventory_changed(lifecycle.changed_nodes(record))
        return [*lifecycle.starting(record), *lifecycle.outlook(record), *changed]

    async def on_replica_ready(self, message: ReplicaReady) -> Sequence[Message]:
        """Remember that it runs, and let it relieve what it is a copy of.

        One that is to run no more is told to stop at once, each time: its order came again, to a worker that forgot.
        """
        record = await self.placing.change(
            message.deployment_id, lambda record: moving.relieved(lifecycle.ready(record, message.token), message.token)
        )
        stray = Stray(node=message.node, replica=message.replica, token=message.token)
        is_over = adopting.is_over(record, message.token, message.replica)
        told: list[Message] = [lifecycle.drain(record, stray)] if is_over else []
        move = moving.by_copy(record, message.token)
        if move is None or record.closing is not None:
            return told
        relieved = record.holding(move.old)
        further = [_next(move)] if relieved is None else lifecycle.orders(record, replica=relieved.placement.replica)
        return [*told, *further]

    async def on_replica_failed(self, message: ReplicaFailed) -> Sequence[Message]:
        """Learn from it, give its bytes back and seat it anew."""
        if message.out_of_memory:
            await self.placing.learn(message.deployment_id, message.token)
        loss = Loss(message.detail, checkpoint_unusable=message.checkpoint_unusable)
        return await self.replaced(message.deployment_id, message.token, message.replica, message.node, loss)

    async def on_replica_stopped(self, message: ReplicaStopped) -> Sequence[Message]:
        """Give its bytes back, to those that wait first; the last one ends the deployment."""
        record = await self.placing.change(
            message.deployment_id, lambda record: lifecycle.stopped(record, message.token)
        )
        changed = await self.inventory_changed([message.node])
        move = moving.from_where(record, message.token)
        further = [] if move is None else [_next(move)]
        return [*lifecycle.release_done(record), *changed, *further, *await self.surveying.due()]

    async def on_release_accepted(self, message: ReleaseAccepted) -> Sequence[Message]:
        """Drain what is placed, and place nothing more."""
        record = await self.placing.change(message.deployment_id, lifecycle.released)
        return [*lifecycle.orders(record), *lifecycle.release_done(record), *await self.surveying.due()]

    async def on_node_reported(self, message: NodeReported) -> Sequence[Message]:
        """Also the time to give back what nobody asked for again."""
        before = await self.inventory.nodes([message.node])
        kept = await self.inventory.report(message)
        changed = await self.inventory_changed(sorted({message.node, *await self.lending.end()}))
        told = await self.sweeping.after_report(message, kept, changed)
        is_more = has_more(_gpus(before), _gpus(changed))
        return [*told, *changed, *(await self.surveying.due() if is_more else ())]

    async def on_node_started(self, message: NodeStarted) -> Sequence[Message]:
        """Tell a worker that came up, and runs nothing, all that it is to run, and to drain."""
        await self.inventory.restarted(message.node)
        orders: list[Message] = []
        for deployment_id in await self.inventory.deployments(message.node):
            record = await self.placing.change(deployment_id, lambda record: lifecycle.restarted(record, message.node))
            orders += lifecycle.orders(record, node=message.node)
        return orders

    async def on_memory_requested(self, message: MemoryRequested) -> Sequence[Message]:
        """Hold bytes for a calibration, or say why not."""
        answer = await self.lending.lend(message)
        gpu = None if answer.place is None else answer.place.gpu
        told = MemoryHeld(
            hold_id=message.hold_id, node=message.rig, gpu=gpu, problem=answer.problem,
            largest_bytes=answer.largest_bytes,
        )  # fmt: skip
        nodes = [answer.place.node] if answer.place is not None and answer.is_new else []
        return [told, *await self.inventory_changed(nodes)]

    async def on_memory_freed(self, message: MemoryFreed) -> Sequence[Message]:
        place = await self.lending.holds.free(message.hold_id)
        if place is None:
            return []
        return [*await self.inventory_changed([place.node]), *await self.surveying.due()]

    async def replaced(self, deployment_id: UUID, token: str, replica: int, node: str, loss: Loss) -> Sequence[Message]:
        """A replica that is gone has another seat, or waits for one, or was the last hope."""
        record = await self.placing.replace(deployment_id, token, loss)
        changed = await self.inventory_changed(lifecycle.changed_nodes(record, node))
        wanted = None if record.closing is not None else replica
        told: list[Message] = [*lifecycle.orders(record, replica=wanted), *lifecycle.outlook(record)]
        move = moving.by_copy(record, token)
        if move is not None and moving.is_spoilt(record, token):
            problem = f"the copy of a replica did not serve on node {node} ({loss.detail}); it goes on where it was"
            stopped = await self.defragmenting.stopped(move.defragmentation_id, problem)
            told += [] if stopped is None else [stopped]
        return [*told, *changed, *await self.surveying.due()]

    async def inventory_changed(self, nodes: Sequence[str]) -> list[InventoryChanged]:
        now = await self.inventory.nodes(nodes)
        return [node.message(silent=now.is_silent(node, self.placing.trying.node_timeout_s)) for node in now]


def _next(move: Move) -> MoveRequested:
    """The one after it is due."""
    return MoveRequested(defragmentation_id=move.defragmentation_id, number=move.number + 1)


def _gpus(nodes: Snapshot | Sequence[InventoryChanged]) -> list[GpuState]:
    return [state for node in nodes for state in node.gpus]
