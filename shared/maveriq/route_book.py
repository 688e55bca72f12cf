"""The routes of the deployments that one client sends requests to, kept current as they change."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from maveriq.contracts import Deployment, Route, State
from maveriq.streams import Streams

_ENDED = (State.RELEASED, State.FAILED)


@dataclass(slots=True)
class RouteBook:
    """Follows the deployments whose requests are routed by size, from when it first sees them until they end."""

    streams: Streams
    _latest: dict[UUID, Deployment] = field(default_factory=dict[UUID, Deployment])
    _following: dict[UUID, asyncio.Task[None]] = field(default_factory=dict[UUID, asyncio.Task[None]])

    def of(self, deployment: Deployment | UUID) -> Sequence[Route]:
        """None for a deployment that this client has seen nothing of but the id: any replica takes its requests."""
        if isinstance(deployment, Deployment):
            self.learn(deployment)
            deployment = deployment.deployment_id
        known = self._latest.get(deployment)
        return () if known is None else known.routes

    def learn(self, deployment: Deployment) -> None:
        """Of two the one that changed later counts."""
        wanted = deployment.deployment_id
        fleet = None if deployment.plan is None else deployment.plan.fleet
        is_routed = fleet is not None and fleet.is_shared
        known = self._latest.get(wanted)
        if not is_routed or (known is not None and known.changed_at >= deployment.changed_at):
            return
        self._latest[wanted] = deployment
        if wanted not in self._following and deployment.state not in _ENDED:
            self._following[wanted] = asyncio.ensure_future(self._follow(wanted))

    async def close(self) -> None:
        tasks = tuple(self._following.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, deployment_id: UUID) -> None:
        try:
            async with self.streams.following(deployment_id) as changes:
                async for change in changes:
                    self._latest[deployment_id] = change.deployment
                    if change.deployment.state in _ENDED:
                        self._latest.pop(deployment_id)
                        return
        finally:
            self._following.pop(deployment_id, None)
