"""Which deployment answers a request for a model. No I/O: deployments as they change in, one of them out."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from uuid import UUID

from maveriq.contracts import Deployment, State
from maveriq.contracts import Route as RouteBySize

_ENDING = (State.DRAINING, State.RELEASED, State.FAILED)


class NoRoute(Enum):
    NOT_READY = "not ready"
    """Deployed, but none serves yet."""
    UNKNOWN = "unknown"
    """Nothing of that name is deployed."""


@dataclass(frozen=True, slots=True)
class Route:
    """What routing needs to know of a deployment."""

    deployment_id: UUID
    model: str
    state: State
    dry_run: bool
    running: bool
    """Some replica serves."""
    accepted_at: datetime
    changed_at: datetime
    by_size: tuple[RouteBySize, ...] = ()
    """Which GPU type answers requests of which size; empty: any replica does."""

    @classmethod
    def of(cls, deployment: Deployment) -> "Route":
        return cls(
            deployment_id=deployment.deployment_id,
            model=deployment.intent.model,
            state=deployment.state,
            dry_run=deployment.dry_run,
            running=bool(deployment.ready_replicas),
            accepted_at=deployment.accepted_at,
            changed_at=deployment.changed_at,
            by_size=deployment.routes,
        )


@dataclass(slots=True)
class Routes:
    """Every deployment's latest known state. Ended ones stay until forgotten, so that old news is known as such."""

    _by_id: dict[UUID, Route] = field(default_factory=dict[UUID, Route])
    _ready: dict[str, list[UUID]] = field(default_factory=dict[str, list[UUID]])
    """Of each model name those that serve, newest first; turned by one for each request."""

    def update(self, route: Route) -> bool:
        """Whether it was news."""
        known = self._by_id.get(route.deployment_id)
        if known is not None and known.changed_at >= route.changed_at:
            return False
        self._by_id[route.deployment_id] = route
        self._ready[route.model] = self._serving(route.model)
        return True

    def versions(self) -> dict[UUID, datetime]:
        """When each deployment last changed, as far as it is known here."""
        return {route.deployment_id: route.changed_at for route in self._by_id.values()}

    def forget(self, deployment_id: UUID) -> None:
        """It is kept nowhere any more."""
        route = self._by_id.pop(deployment_id, None)
        if route is not None:
            self._ready[route.model] = self._serving(route.model)
            if not self._ready[route.model]:
                del self._ready[route.model]

    def states(self) -> list[State]:
        """Of each deployment that was meant to run."""
        return [route.state for route in self._by_id.values() if not route.dry_run]

    def models(self) -> dict[str, list[Route]]:
        """The deployments of each model name that serve or are about to."""
        found: dict[str, list[Route]] = {}
        for route in self._by_id.values():
            if not route.dry_run and route.state not in _ENDING:
                found.setdefault(route.model, []).append(route)
        return found

    def get(self, name: str) -> Route | None:
        """The deployment whose id `name` is."""
        try:
            return self._by_id.get(UUID(name))
        except ValueError:
            return None

    def by_size(self, deployment_id: UUID) -> tuple[RouteBySize, ...]:
        route = self._by_id.get(deployment_id)
        return () if route is None else route.by_size

    def pick(self, name: str) -> UUID | NoRoute:
        """The deployment to ask.

        Args:
            name: of a model, whose ready deployments take turns; or the id of one deployment.
        """
        ready = self._ready.get(name)
        if ready:
            chosen = ready.pop(0)
            ready.append(chosen)
            return chosen
        one = self.get(name)
        if one is not None and not one.dry_run:
            if one.state is State.READY:
                return one.deployment_id
            return NoRoute.UNKNOWN if one.state in _ENDING else NoRoute.NOT_READY
        return NoRoute.NOT_READY if name in self.models() else NoRoute.UNKNOWN

    def _serving(self, model: str) -> list[UUID]:
        """Ready ones, newest first. Those with a running replica alone, as long as there are any: the others'
        requests would wait for the next candidate to start."""
        ready = [
            route
            for route in self._by_id.values()
            if route.model == model and route.state is State.READY and not route.dry_run
        ]
        running = [route for route in ready if route.running] or ready
        return [route.deployment_id for route in sorted(running, key=lambda route: route.accepted_at, reverse=True)]
