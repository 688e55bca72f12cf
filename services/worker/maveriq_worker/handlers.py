"""Messages in, messages out: placements start replicas, drains end them, and what runs is said again when asked."""

from dataclasses import dataclass
from typing import Any

from maveriq.bus import Handler, Replies
from maveriq.contracts import ConfirmationRequested, DeploymentDraining, PlacementReserved
from maveriq_worker.fleet import Fleet

MAX_AT_ONCE = 32  # starting and draining take minutes each and must not wait for one another


@dataclass(frozen=True, slots=True)
class Handlers:
    fleet: Fleet

    async def on_placement_reserved(self, message: PlacementReserved) -> Replies:
        """Unacked until the replica serves, so that a worker that dies while loading is asked again."""
        return await self.fleet.start(message.deployment_id, message.placement)

    async def on_deployment_draining(self, message: DeploymentDraining) -> Replies:
        return await self.fleet.drain(message)

    async def on_confirmation_requested(self, message: ConfirmationRequested) -> Replies:
        """Say again what was placed here: the allocator has lost its record."""
        return self.fleet.confirmed(message.tokens)

    def all(self) -> tuple[Handler[Any], ...]:
        return (
            Handler(PlacementReserved, self.on_placement_reserved, prefetch=MAX_AT_ONCE),
            Handler(DeploymentDraining, self.on_deployment_draining, prefetch=MAX_AT_ONCE),
            Handler(ConfirmationRequested, self.on_confirmation_requested),
        )
