"""The allocator's messages in, and what they cause."""

from collections.abc import Sequence
from dataclasses import dataclass

from maveriq.contracts import (
    InventoryChanged,
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
from maveriq_allocator.lifecycle import Stray
from maveriq_allocator.placing import Placing


@dataclass(frozen=True, slots=True)
class Handlers:
    inventory: Inventory
    placing: Placing

    async def on_plan_computed(self, message: PlanComputed) -> Sequence[Message]:
        """Reserve the first candidate that fits for all replicas, or for none."""
        record = await self.placing.place(message)
        changed = await self._inventory_changed(lifecycle.changed_nodes(record))
        return [*lifecycle.orders(record), *lifecycle.ending(record), *changed]

    async def on_replica_ready(self, message: ReplicaReady) -> Sequence[Message]:
        """Remember that it runs. One that is no longer wanted is told to stop: its order to start came late."""
        stray = Stray(node=message.node, replica=message.replica, token=message.token)
        record = await self.placing.change(message.deployment_id, lambda record: lifecycle.ready(record, stray))
        return [lifecycle.drain(message.deployment_id, stray)] if record.closing is not None else []

    async def on_replica_failed(self, message: ReplicaFailed) -> Sequence[Message]:
        """Give its bytes back and try the next candidate."""
        record = await self.placing.replace(message.deployment_id, message.token, message.detail)
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
        await self.inventory.report(message)
        return await self._inventory_changed([message.node])

    async def on_node_started(self, message: NodeStarted) -> Sequence[Message]:
        """Tell a worker that came up, and runs nothing, all that it is to run, and to drain."""
        orders: list[Message] = []
        for deployment_id in await self.inventory.deployments(message.node):
            record = await self.placing.change(deployment_id, lambda record: lifecycle.restarted(record, message.node))
            orders += lifecycle.orders(record, node=message.node)
        return orders

    async def _inventory_changed(self, nodes: Sequence[str]) -> list[InventoryChanged]:
        return [state.message() for state in await self.inventory.nodes(nodes)]
