"""Nodes and their GPUs in Redis: what the workers reported, and who holds what. Keys: see `keys`.

A GPU that its node no longer reports is not offered; what was held on it stays held until its replica stops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from maveriq.bus import Rejected
from maveriq.contracts import Fault, NodeReported, Running, Stage
from maveriq_allocator import keys
from maveriq_allocator.drift import SLACK_BYTES
from maveriq_allocator.node_state import Snapshot
from maveriq_allocator.nodes import GPUS, Nodes
from maveriq_allocator.quotas import NO_HEADROOM, Headroom
from maveriq_allocator.store import Store


@dataclass(frozen=True, slots=True)
class Times:
    """By which silence is judged."""

    sweep_s: float = 5.0
    """Between two looks for silent workers."""
    grace_s: float = 60.0
    """That a worker may say nothing of a reservation before it is reclaimed."""

    @property
    def max_step_ms(self) -> int:
        """Between two looks: more was an outage of our own."""
        return round(2e3 * self.sweep_s)

    @property
    def grace_ms(self) -> int:
        return round(1e3 * self.grace_s)


DEFAULT_TIMES = Times()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a report showed beside what it says."""

    strange: tuple[str, ...] = ()
    """Tokens of what runs there and no record holds."""
    left_out: tuple[str, ...] = ()
    """Tokens of what is held there and was in no report for the grace period."""


class Inventory:
    def __init__(self, redis: Store, headroom: Headroom = NO_HEADROOM, times: Times = DEFAULT_TIMES) -> None:
        self._redis = redis
        self._headroom = headroom
        self._times = times
        self._nodes = Nodes(redis)
        self._report = redis.register_script(Path(__file__).with_name("report.lua").read_text())

    async def report(self, message: NodeReported) -> Kept:
        """Raises Rejected: what runs has a token that no allocator gave out."""
        name = message.node
        gpus = GPUS.dump_json(message.gpus).decode()
        told = [name, message.engine, gpus, int(message.spans_nodes), _told(message.number)]
        told += [self._times.max_step_ms, self._times.grace_ms, SLACK_BYTES]
        told += ["" if message.running is None else "1", self._headroom.of(name), len(message.gpus)]
        for gpu in message.gpus:
            told += [gpu.id, gpu.total_bytes - gpu.foreign_bytes, gpu.total_bytes, _told(gpu.own_bytes)]
        others: dict[str, int] = {name: 0}
        for number, one in enumerate(message.running or ()):
            _check(one, f"running.{number}.token")
            for (node, gpu_id), num_bytes in taken(one.stages, name).items():
                told += [others.setdefault(node, len(others)), node, gpu_id, one.token, num_bytes]
        touched = [keys.CHANGES, keys.node(name), keys.held(name), keys.strange(name), keys.missing(name)]
        touched += [keys.HEARD, keys.WATCH]
        touched += [key for node in [*others][1:] for key in (keys.node(node), keys.held(node))]
        outcome, *found = await self._report(touched, told)
        return Kept(*map(tuple, found)) if outcome == "kept" else Kept()

    async def restarted(self, node: str) -> None:
        """Its worker came up anew, and numbers its reports anew."""
        await self._redis.hdel(keys.node(node), "number")

    async def snapshot(self) -> Snapshot:
        """Every node, by name."""
        return await self._nodes.all()

    async def nodes(self, names: Sequence[str]) -> Snapshot:
        """These nodes, without those that never reported."""
        return await self._nodes.of(names)

    async def deployments(self, node: str) -> list[UUID]:
        """Those that hold something on a node."""
        holders = [keys.parse_holding(field) for field in await self._redis.hkeys(keys.held(node))]
        return sorted({owner for _, owner, replica in holders if replica is not None})


def taken(stages: Sequence[Stage], node: str) -> dict[tuple[str, str], int]:
    """Bytes by node and GPU that a replica led from `node` holds."""
    held: dict[tuple[str, str], int] = {}
    for stage in stages:
        for gpu in stage.gpus:
            at = (stage.node or node, gpu)
            held[at] = held.get(at, 0) + stage.reserved_bytes
    return held


def _check(running: Running, field: str) -> None:
    try:
        if keys.parse_token(running.token) == (running.deployment_id, running.replica):
            return
    except ValueError:
        pass
    raise Rejected(
        Fault(
            field=field,
            problem=f"{running.token} is no token of replica {running.replica} of {running.deployment_id}",
            remedy="report the token of its placement",
        )
    )


def _told(number: int | None) -> str:
    return "" if number is None else str(number)
