"""The allocator's messages in, and what they cause."""

from collections.abc import Sequence
from dataclasses import dataclass

from maveriq.contracts import (
    InventoryChanged,
    MemoryFreed,
    MemoryHeld,
    MemoryRequested,
    Message,
    NodeReported,
    NodeStarted,
    PlanComputed,
    ReleaseAccepted,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
)
from maveriq_allocator import lifecycle
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.lending import Lending
from maveriq_allocator.lifecycle import Stray
from maveriq_allocator.placing import Placing


@dataclass(frozen=True, slots=True)
class Handlers:
    inventory: Inventory
    placing: Placing
    lending: Lending

    async def on_plan_computed(self, message: PlanComputed) -> Sequence[Message]:
        """Reserve the first candidate that fits for all replicas, or for none; of what is placed, keep the plan."""
        record = await self.placing.place(message)
        changed = await self._inventory_changed(lifecycle.changed_nodes(record))
        return [*lifecycle.orders(record), *lifecycle.ending(record), *changed]

    async def on_replica_ready(self, message: ReplicaReady) -> Sequence[Message]:
        """Remember that it runs. One that is no longer wanted is told to stop: its order to start came late."""
        stray = Stray(node=message.node, replica=message.replica, token=message.token)
        record = await self.placing.change(message.deployment_id, lambda record: lifecycle.ready(record, stray))
        return [lifecycle.drain(message.deployment_id, stray)] if record.closing is not None else []

    async def on_replica_failed(self, message: ReplicaFailed) -> Sequence[Message]:
        """Give its bytes back and seat it anew."""
        record = await self.placing.replace(
            message.deployment_id, message.token, message.detail, unusable=message.checkpoint_unusable
        )
        changed = await self._inventory_changed(lifecycle.changed_nodes(record, message.node))
        wanted = None if record.closing is not None else message.replica
        return [*lifecycle.orders(record, replica=wanted), *lifecycle.ending(record), *changed]

    async def on_replica_stopped(self, message: ReplicaStopped) -> Sequence[Message]:
        """Give its bytes back; the last one ends the deployment."""
        record = await self.placing.change(
            message.deployment_id, lambda record: lifecycle.stopped(record, message.token)
        )
        return [*lifecycle.release_done(record), *await self._inventory_changed([message.node])]

    async def on_release_accepted(self, message: ReleaseAccepted) -> Sequence[Message]:
        """Drain what is placed, and place nothing more."""
        record = await self.placing.change(message.deployment_id, lifecycle.released)
        return [*lifecycle.orders(record), *lifecycle.release_done(record)]

    async def on_node_reported(self, message: NodeReported) -> Sequence[Message]:
        """Also the time to give back what nobody asked for again."""
        await self.inventory.report(message)
        return await self._inventory_changed(sorted({message.node, *await self.lending.end()}))

    async def on_node_started(self, message: NodeStarted) -> Sequence[Message]:
        """Tell a worker that came up, and runs nothing, all that it is to run, and to drain."""
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
        return [told, *await self._inventory_changed(nodes)]

    async def on_memory_freed(self, message: MemoryFreed) -> Sequence[Message]:
        place = await self.lending.holds.free(message.hold_id)
        return [] if place is None else await self._inventory_changed([place.node])

    async def _inventory_changed(self, nodes: Sequence[str]) -> list[InventoryChanged]:
        return [state.message() for state in await self.inventory.nodes(nodes)]
