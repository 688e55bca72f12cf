"""Deployments' records and the bytes they hold, in Redis: changed together, or not at all. Keys: see `keys`.

Every change is made from a version of the record and refused if that is no longer the latest, so any number of
allocators may work at once, and one that dies between two calls leaves either the old state or the new.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from maveriq.contracts import PlanComputed
from maveriq_allocator import keys
from maveriq_allocator.lifecycle import Record
from maveriq_allocator.store import Store

FORGET_S = 7 * 24 * 3600  # a message about an ended deployment comes within that or never


class Outcome(StrEnum):
    DONE = "done"
    STALE = "stale"
    """The record changed meanwhile: load it again."""
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
    def __init__(self, redis: Store) -> None:
        self._redis = redis
        self._commit = redis.register_script(Path(__file__).with_name("commit.lua").read_text())

    async def load(self, deployment_id: UUID) -> Loaded:
        version, record = await self._redis.hmget(keys.deployment(deployment_id), ["version", "record"])
        if record is None:
            return Loaded(0, Record(deployment_id=deployment_id))
        return Loaded(int(version), Record.model_validate_json(record))

    async def plan(self, deployment_id: UUID) -> PlanComputed | None:
        """The plan of a deployment that has not ended."""
        plan = await self._redis.hget(keys.deployment(deployment_id), "plan")
        return None if plan is None else PlanComputed.model_validate_json(plan)

    async def commit(self, before: Loaded, after: Record, plan: PlanComputed | None = None) -> Outcome:
        """Replace a record, give back what it no longer holds and hold what it holds anew."""
        old, new = set(_holds(before.record)), set(_holds(after))
        nodes = sorted({hold.node for hold in old ^ new})
        number = {node: index for index, node in enumerate(nodes, start=1)}
        change = {
            "expected": str(before.version),
            "ends": after.ended,
            "forget_s": FORGET_S,
            "releases": [(number[h.node], h.field) for h in old - new],
            "holds": [(number[h.node], h.gpu, h.field, str(h.bytes)) for h in new - old],
        }
        touched = [key for node in nodes for key in (keys.node(node), keys.held(node))]
        told = [json.dumps(change), after.model_dump_json(), "" if plan is None else plan.model_dump_json()]
        answer = await self._commit([keys.deployment(after.deployment_id), *touched], told)
        return Outcome(answer[0])


def _holds(record: Record) -> Iterator[_Hold]:
    for held in record.held:
        at = held.placement
        for stage in at.stages:
            for gpu in stage.gpus:
                field = keys.holding(gpu, record.deployment_id, at.replica)
                yield _Hold(stage.node or at.node, gpu, field, stage.reserved_bytes)
