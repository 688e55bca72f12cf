"""Wires the allocator: Redis, its handlers, the bus."""

from collections.abc import Mapping, Sequence
from typing import Any

import maveriq.running
from maveriq.bus import Bus, Handler
from maveriq.contracts import (
    MemoryFreed,
    MemoryRequested,
    NodeReported,
    NodeStarted,
    PlanComputed,
    ReleaseAccepted,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
)
from maveriq.topology import ALLOCATOR
from maveriq_allocator.handlers import Handlers
from maveriq_allocator.holds import Holds
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.lending import Lending
from maveriq_allocator.placing import Placing
from maveriq_allocator.reservations import Reservations
from maveriq_allocator.settings import Settings, from_env
from maveriq_allocator.store import Store, connect


async def run(bus: Bus, env: Mapping[str, str]) -> None:
    """Serve until cancelled. Raises BadSetting, and redis ConnectionError when Redis is not there at the start."""
    settings = from_env(env)
    redis = connect(settings.redis_url)
    try:
        await redis.ping()
        await bus.run(ALLOCATOR, bound(wire(redis, settings)))
    finally:
        await redis.aclose()


def wire(redis: Store, settings: Settings) -> Handlers:
    inventory, holds = Inventory(redis), Holds(redis)
    return Handlers(
        inventory,
        Placing(inventory, Reservations(redis), holds, settings.node_timeout_s),
        Lending(inventory, holds, settings.node_timeout_s),
    )


def bound(handlers: Handlers) -> Sequence[Handler[Any]]:
    return [
        Handler(PlanComputed, handlers.on_plan_computed),
        Handler(ReplicaReady, handlers.on_replica_ready),
        Handler(ReplicaFailed, handlers.on_replica_failed),
        Handler(ReplicaStopped, handlers.on_replica_stopped),
        Handler(ReleaseAccepted, handlers.on_release_accepted),
        Handler(NodeReported, handlers.on_node_reported),
        Handler(NodeStarted, handlers.on_node_started),
        Handler(MemoryRequested, handlers.on_memory_requested),
        Handler(MemoryFreed, handlers.on_memory_freed),
    ]


def main() -> None:
    maveriq.running.main("allocator", run)


if __name__ == "__main__":
    main()
