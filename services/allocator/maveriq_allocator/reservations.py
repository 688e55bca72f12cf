"""Deployments' records and the bytes they hold, in Redis: changed together, or not at all. Keys: see `keys`.

Every change is made from a version of the record and refused if that is no longer the latest, so any number of
allocators may work at once, and one that dies between two calls leaves either the old state or the new. A choice of
GPUs names the versions of them that it was made from, and is refused where one has changed since.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from pydantic import TypeAdapter

from maveriq.contracts import DeploymentKept, Placement, PlanComputed
from maveriq_allocator import keys
from maveriq_allocator.grouping import GroupedScript
from maveriq_allocator.inventory import taken
from maveriq_allocator.node_state import NodeState
from maveriq_allocator.quotas import NO_QUOTA, OverQuota, Quotas
from maveriq_allocator.record import Record
from maveriq_allocator.store import Store

_RECORD = TypeAdapter(Record)
_ENDED = "\x1f"  # of each part of a change
FORGET_S = 7 * 24 * 3600  # a message about an ended deployment comes within that or never


class Outcome(StrEnum):
    DONE = "done"
    STALE = "stale"
    """The record changed meanwhile: load it again."""
    MOVED = "moved"
    """Something changed on a GPU that was chosen: choose again from a new snapshot."""
    TAKEN = "taken"
    """Bytes are no longer free: take a new snapshot."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A record as it was read."""

    version: int
    """0: there is none; `record` is then blank."""
    record: Record


@dataclass(frozen=True, slots=True)
class _Hold:
    node: str
    gpu: str
    field: str
    bytes: int


class Reservations:
    def __init__(self, redis: Store, quotas: Quotas = NO_QUOTA) -> None:
        self._redis = redis
        self._quotas = quotas
        self._commit = GroupedScript(redis, Path(__file__).with_name("commit.lua").read_text())
        self._latest = redis.register_script(Path(__file__).with_name("latest.lua").read_text())

    async def load(self, deployment_id: UUID) -> Loaded:
        version, record = await self._redis.hmget(keys.deployment(deployment_id), ["version", "record"])
        if record is None:
            return Loaded(0, Record(deployment_id=deployment_id))
        return Loaded(int(version), Record.model_validate_json(record))

    async def load_all(self, deployment_ids: Sequence[UUID]) -> list[Loaded]:
        """In one round trip."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for deployment_id in deployment_ids:
                pipeline.hmget(keys.deployment(deployment_id), ["version", "record"])
            answers: list[list[str]] = await pipeline.execute() if deployment_ids else []
        return [
            Loaded(int(version or 0), Record.model_validate_json(record) if record else Record(deployment_id=each))
            for each, (version, record) in zip(deployment_ids, answers, strict=True)
        ]

    async def plan(self, deployment_id: UUID) -> PlanComputed | None:
        """The plan of a deployment that has not ended."""
        plan = await self.plan_text(deployment_id)
        return None if plan is None else PlanComputed.model_validate_json(plan)

    async def plan_text(self, deployment_id: UUID) -> str | None:
        """The same as JSON."""
        plan: str | None = await self._redis.hget(keys.deployment(deployment_id), "plan")
        return plan

    async def commit(
        self, before: Loaded, after: Record, plan: PlanComputed | None = None, seen: Iterable[NodeState] = ()
    ) -> Outcome | OverQuota:
        """Replace a record, give back what it no longer holds and hold what it holds anew.

        Args:
            seen: the snapshot that what is held anew was chosen from: MOVED where one of those GPUs has changed
                since. Empty: whatever has changed, as long as the bytes are free.
        """
        return await self._change(before, after, plan, {node.name: node for node in seen})

    async def is_latest(self, copy: DeploymentKept) -> bool:
        """Whether a copy of a record is the one that goes on."""
        told = [str(copy.rounds), str(copy.mark)]
        return bool(await self._latest([keys.deployment(copy.deployment_id)], told))

    async def last_round(self, deployment_id: UUID) -> int:
        """Of its copies; 0: none came round yet."""
        known: str | None = await self._redis.hget(keys.deployment(deployment_id), "copy")
        return int((known or "0").split()[0])

    async def all(self) -> AsyncIterator[UUID]:
        """Every deployment of which something is known, in no order."""
        prefix = keys.deployment("")
        async for key in self._redis.scan_iter(f"{prefix}*", count=1_000):
            yield UUID(key.removeprefix(prefix))

    async def adopt(
        self, before: Loaded, after: Record, plan: PlanComputed | None, reporter: str
    ) -> Outcome | OverQuota:
        """Make a record of replicas that `reporter`'s worker runs, whose bytes are held as strange; else TAKEN."""
        return await self._change(before, after, plan, {}, reporter)

    async def _change(
        self,
        before: Loaded,
        after: Record,
        plan: PlanComputed | None,
        seen: Mapping[str, NodeState],
        reporter: str | None = None,
    ) -> Outcome | OverQuota:
        old = {held.placement.token: held.placement for held in before.record.held}
        new = {held.placement.token: held.placement for held in after.held}
        releases = _holds(old[token] for token in old.keys() - new.keys())
        holds = _holds(new[token] for token in new.keys() - old.keys())
        nodes: dict[str, tuple[list[_Hold], list[_Hold]]] = {}
        for which, changed in enumerate((releases, holds)):
            for hold in changed:
                nodes.setdefault(hold.node, ([], []))[which].append(hold)
        touched = [keys.CHANGES, *(key for node in nodes for key in (keys.node(node), keys.held(node)))]
        if reporter is not None:
            touched.append(keys.strange(reporter))
        tenant = next((at.tenant for at in (*new.values(), *old.values())), "")
        quota = self._quotas.of(tenant)
        used = _holds(new.values()) if old or len(new) > len(holds) else holds
        change = [
            str(before.version),
            str(FORGET_S) if after.ended else "",
            str(after.deployment_id),
            str(sum(hold.bytes for hold in used)),
            str(len({hold.gpu for hold in used})),
            *quota.told(),
            "" if reporter is None else "1",
        ]
        for back, anew in nodes.values():
            change += str(len(back)), str(len(anew))
            for hold in back:
                change += hold.gpu, hold.field
            for hold in anew:
                change += hold.gpu, hold.field, str(hold.bytes), _version(seen, hold)
        told: list[str | bytes] = [
            _ENDED.join((*change, "")),
            _RECORD.dump_json(after),
            "" if plan is None else plan.model_dump_json(),
        ]
        answer = await self._commit([keys.deployment(after.deployment_id), keys.tenant(tenant), *touched], told)
        return OverQuota(tenant, quota, *answer[1:]) if answer[0] == "over" else Outcome(answer[0])


def _holds(placements: Iterable[Placement]) -> list[_Hold]:
    """One for each GPU and replica."""
    return [
        _Hold(node, gpu, keys.holding(gpu, at.token), num_bytes)
        for at in placements
        for (node, gpu), num_bytes in taken(at.stages, at.node).items()
    ]


def _version(seen: Mapping[str, NodeState], hold: _Hold) -> str:
    """Of the hold's GPU in the snapshot; '0', which no GPU has, where it was not there."""
    if not seen:
        return ""
    return seen[hold.node].versions.get(hold.gpu, "0") if hold.node in seen else "0"
