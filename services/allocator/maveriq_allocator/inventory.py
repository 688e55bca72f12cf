"""Nodes and their GPUs in Redis: what the workers reported, and who holds what. Keys: see `keys`.

A GPU that its node no longer reports is not offered; what was held on it stays held until its replica stops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import UUID

from pydantic import TypeAdapter

from maveriq.bus import Rejected
from maveriq.contracts import Fault, Gpu, GpuState, Holding, NodeReported, Running, Stage
from maveriq_allocator import keys
from maveriq_allocator.drift import SLACK_BYTES, drift
from maveriq_allocator.node_state import NodeState
from maveriq_allocator.quotas import NO_HEADROOM, Headroom
from maveriq_allocator.store import Store

_GPUS = TypeAdapter(tuple[Gpu, ...])
_NODES_A_ROUND_TRIP = 200


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
        self._report = redis.register_script(Path(__file__).with_name("report.lua").read_text())

    async def report(self, message: NodeReported) -> Kept:
        """Raises Rejected: what runs has a token that no allocator gave out."""
        name = message.node
        gpus = _GPUS.dump_json(message.gpus).decode()
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
        touched = [keys.NODES, keys.node(name), keys.held(name), keys.strange(name), keys.missing(name)]
        touched += [keys.HEARD, keys.WATCH]
        touched += [key for node in [*others][1:] for key in (keys.node(node), keys.held(node))]
        outcome, *found = await self._report(touched, told)
        return Kept(*map(tuple, found)) if outcome == "kept" else Kept()

    async def restarted(self, node: str) -> None:
        """Its worker came up anew, and numbers its reports anew."""
        await self._redis.hdel(keys.node(node), "number")

    async def snapshot(self) -> list[NodeState]:
        """Every node, by name. Each is read whole; together they may be of different moments."""
        names = sorted(await self._redis.smembers(keys.NODES))
        nodes: list[NodeState] = []
        for start in range(0, len(names), _NODES_A_ROUND_TRIP):
            nodes += await self.nodes(names[start : start + _NODES_A_ROUND_TRIP])
        return nodes

    async def nodes(self, names: Sequence[str]) -> list[NodeState]:
        """These nodes, without those that never reported."""
        if not names:
            return []
        async with self._redis.pipeline(transaction=True) as pipeline:
            for name in names:
                pipeline.hgetall(keys.node(name))
                pipeline.hgetall(keys.held(name))
            pipeline.hget(keys.WATCH, "listened_ms")
            *answers, listened_ms = await pipeline.execute()
        pairs = zip(names, answers[::2], answers[1::2], strict=True)
        return [_node_state(name, facts, held, int(listened_ms or 0)) for name, facts, held in pairs if "gpus" in facts]

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


def _node_state(name: str, facts: Mapping[str, str], held: Mapping[str, str], listened_ms: int) -> NodeState:
    holdings: dict[str, list[Holding]] = {}
    for field, num_bytes in sorted(held.items()):
        gpu, owner, replica = keys.parse_holding(field)
        holding = Holding.model_construct(  # what a script wrote is not checked again: a large fleet has many
            deployment_id=owner, replica=replica or 0, bytes=int(num_bytes), calibration=replica is None
        )
        holdings.setdefault(gpu, []).append(holding)
    states = [_gpu_state(gpu, tuple(holdings.get(gpu.id, ()))) for gpu in _gpus(facts["gpus"])]
    return NodeState(
        name=name,
        engine=facts["engine"],
        gpus=tuple(states),
        spans_nodes=facts.get("spans_nodes") == "1",
        silent_s=max(0, listened_ms - int(facts["heard_at_ms"])) / 1e3,
        headroom_bytes=int(facts.get("headroom", 0)),
        limits={state.gpu.id: int(facts[keys.limit(state.gpu.id)]) for state in states},
        versions={state.gpu.id: facts[keys.version(state.gpu.id)] for state in states},
    )


def _gpu_state(gpu: Gpu, holdings: tuple[Holding, ...]) -> GpuState:
    told = drift(gpu, sum(holding.bytes for holding in holdings))
    return GpuState.model_construct(gpu=gpu, holdings=holdings, drift=told)


@lru_cache(maxsize=4096)  # a node's, until it reports others
def _gpus(text: str) -> tuple[Gpu, ...]:
    return _GPUS.validate_json(text)
