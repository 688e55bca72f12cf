"""What this process knows of all deployments: heard on a mailbox, and read from Redis at the start and now and then.

A mailbox comes back empty after a lost connection, so what it missed is read from Redis.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from redis.exceptions import RedisError

from maveriq.bus import Bus, Mailbox
from maveriq.contracts import Deployment, DeploymentChanged, Message
from maveriq_ingress.routing import Route, Routes
from maveriq_ingress.statuses import Statuses

REFRESH_S = 5.0
READ_AT_ONCE = 100  # records of one MGET: each may hold a long plan

log = structlog.get_logger()


@dataclass(slots=True)
class Changes:
    """Keeps the routes current, and tells whoever follows one deployment."""

    statuses: Statuses
    routes: Routes = field(default_factory=Routes)
    _followers: dict[UUID, list[asyncio.Queue[Deployment]]] = field(
        default_factory=dict[UUID, list[asyncio.Queue[Deployment]]]
    )
    _mailbox: Mailbox | None = None

    async def open(self, bus: Bus) -> None:
        """Hear first, then read: nothing falls in between."""
        self._mailbox = await bus.mailbox(self._receive, name="ingress-routes")
        await self._mailbox.bind(f"{DeploymentChanged.topic}.#")
        await self.refresh()

    async def close(self) -> None:
        if self._mailbox is not None:
            await self._mailbox.close()

    async def keep_fresh(self) -> None:
        """Refresh until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except RedisError as error:
                log.warning("deployments not read", error=str(error))

    async def refresh(self) -> None:
        """Read what changed without our hearing of it."""
        known = self.routes.versions()
        kept = await self.statuses.versions()
        for deployment_id in known.keys() - kept.keys():
            self.routes.forget(deployment_id)
        news = [one for one, changed_at in kept.items() if one not in known or known[one] < changed_at]
        for start in range(0, len(news), READ_AT_ONCE):
            for deployment in await self.statuses.read(news[start : start + READ_AT_ONCE]):
                self.learn(deployment)

    def learn(self, deployment: Deployment) -> None:
        if self.routes.update(Route.of(deployment)):
            for follower in self._followers.get(deployment.deployment_id, ()):
                follower.put_nowait(deployment)

    @contextmanager
    def following(self, deployment_id: UUID) -> Generator[asyncio.Queue[Deployment]]:
        """The deployment's changes from now on, each newer than the one before."""
        queue: asyncio.Queue[Deployment] = asyncio.Queue()
        followers = self._followers.setdefault(deployment_id, [])
        followers.append(queue)
        try:
            yield queue
        finally:
            followers.remove(queue)
            if not followers:
                self._followers.pop(deployment_id, None)

    def _receive(self, message: Message) -> None:
        if isinstance(message, DeploymentChanged):
            self.learn(message.deployment)
