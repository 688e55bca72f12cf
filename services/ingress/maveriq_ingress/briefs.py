"""Deployments as lists show them, as JSON, kept in this process: there may be thousands, polled every second, and most
of a record is its plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from maveriq.contracts import Deployment, Plan
from maveriq_ingress.statuses import KEEP_ENDED_S, Statuses

READ_AT_ONCE = 50  # some milliseconds, in which nothing else is answered


@dataclass(frozen=True, slots=True)
class _Brief:
    changed_at: datetime
    place: tuple[datetime, UUID]
    text: str

    def is_old(self, changed_at: datetime, now: datetime) -> bool:
        """It changed since, or may have been forgotten."""
        return self.changed_at < changed_at or now - self.changed_at > timedelta(seconds=KEEP_ENDED_S)


@dataclass(slots=True)
class Briefs:
    statuses: Statuses
    _known: dict[UUID, _Brief] = field(default_factory=dict[UUID, _Brief])

    async def all(self) -> list[str]:
        """Oldest first. Only those that changed since they were last asked for are read."""
        kept, now = await self.statuses.versions(), datetime.now(UTC)
        for gone in self._known.keys() - kept.keys():
            del self._known[gone]
        news = [each for each, at in kept.items() if each not in self._known or self._known[each].is_old(at, now)]
        for start in range(0, len(news), READ_AT_ONCE):
            await self._read(news[start : start + READ_AT_ONCE])
        return [each.text for each in sorted(self._known.values(), key=lambda each: each.place)]

    async def _read(self, wanted: Sequence[UUID]) -> None:
        for each in wanted:
            self._known.pop(each, None)
        for deployment in await self.statuses.read(wanted):
            place = (deployment.accepted_at, deployment.deployment_id)
            text = brief(deployment).model_dump_json()
            self._known[deployment.deployment_id] = _Brief(deployment.changed_at, place, text)


def brief(deployment: Deployment) -> Deployment:
    """Without what was measured, and of its plan the best candidate and the fleet alone."""
    plan = deployment.plan
    return deployment.model_copy(
        update={"fingerprints": (), "calibrations": (), "plan": None if plan is None else _best(plan)}
    )


def _best(plan: Plan) -> Plan:
    return plan.model_copy(update={"candidates": plan.candidates[:1], "rejected": (), "front": ()})
