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
    PlacementRequested,
    PlanComputed,
    ReleaseAccepted,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
)
from maveriq.running import side_by_side
from maveriq.topology import ALLOCATOR
from maveriq_allocator.copy_handlers import CopyHandlers, copy_all
from maveriq_allocator.defragmenting import Defragmenting
from maveriq_allocator.handlers import Handlers
from maveriq_allocator.heartbeats import Heartbeats
from maveriq_allocator.holds import Holds
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.lending import Lending
from maveriq_allocator.lessons import Lessons
from maveriq_allocator.line import Line
from maveriq_allocator.move_handlers import MoveHandlers
from maveriq_allocator.placing import Placing
from maveriq_allocator.reservations import Reservations
from maveriq_allocator.settings import Settings
from maveriq_allocator.store import Store, connect
from maveriq_allocator.surveying import Surveying
from maveriq_allocator.sweeping import Sweeping, remind
from maveriq_allocator.trying import Trying


async def run(bus: Bus, env: Mapping[str, str]) -> None:
    """Serve until cancelled. Raises BadSetting, and redis ConnectionError when Redis is not there at the start."""
    settings = Settings.from_env(env)
    redis = connect(settings.redis_url)
    try:
        await redis.ping()
        handlers = wire(redis, settings)
        await side_by_side(
            bus.run(ALLOCATOR, bound(handlers)), remind(bus, settings.times.sweep_s), copy_all(bus, handlers.placing)
        )  # fmt: skip
    finally:
        await redis.aclose()


def wire(redis: Store, settings: Settings) -> Handlers:
    inventory, holds = Inventory(redis, settings.headroom, settings.times), Holds(redis)
    reservations, line = Reservations(redis, settings.quotas), Line(redis)
    trying = Trying(inventory, holds, line, Lessons(redis), settings.silence_s, settings.strategy)
    return Handlers(
        inventory,
        Placing(reservations, line, trying),
        Lending(inventory, holds, settings.silence_s),
        Surveying(reservations, line, trying),
        Sweeping(redis, reservations, settings.times),
        Defragmenting(redis, reservations, line, trying),
    )


def bound(handlers: Handlers) -> Sequence[Handler[Any]]:
    return [
        Handler(PlanComputed, handlers.on_plan_computed),
        Handler(PlacementRequested, handlers.on_placement_requested),
        Handler(ReplicaReady, handlers.on_replica_ready),
        Handler(ReplicaFailed, handlers.on_replica_failed),
        Handler(ReplicaStopped, handlers.on_replica_stopped),
        Handler(ReleaseAccepted, handlers.on_release_accepted),
        Handler(NodeReported, handlers.on_node_reported),
        Handler(NodeStarted, handlers.on_node_started),
        Handler(MemoryRequested, handlers.on_memory_requested),
        Handler(MemoryFreed, handlers.on_memory_freed),
        *Heartbeats(handlers).all(),
        *MoveHandlers(handlers).all(),
        *CopyHandlers(handlers).all(),
    ]


def main() -> None:
    maveriq.running.main("allocator", run)


if __name__ == "__main__":
    main()
