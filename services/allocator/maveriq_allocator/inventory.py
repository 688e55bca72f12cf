"""Nodes and their GPUs in Redis: what the workers reported, and who holds what. Keys: see `keys`.

A GPU that its node no longer reports is not offered; what was held on it stays held until its replica stops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from pydantic import TypeAdapter

from maveriq.contracts import Gpu, GpuState, Holding, InventoryChanged, NodeReported
from maveriq_allocator import keys
from maveriq_allocator.choosing import Node
from maveriq_allocator.packing import Fragment
from maveriq_allocator.store import Store

_GPUS = TypeAdapter(tuple[Gpu, ...])
_NODES_A_ROUND_TRIP = 200


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node as last reported, and what is held on it."""

    name: str
    engine: str
    reported_at_s: int
    """By Redis' clock."""
    gpus: tuple[GpuState, ...]
    spans_nodes: bool = False

    def message(self) -> InventoryChanged:
        return InventoryChanged(node=self.name, engine=self.engine, gpus=self.gpus)

    def fragments(self, apart_from: tuple[UUID, int] | None = None) -> Node:
        """What is free here, taking as free what is held for the replica `apart_from`."""
        return Node(
            self.name,
            self.engine,
            tuple(_fragment(s.gpu, _without(s, apart_from).free_bytes) for s in self.gpus),
            self.spans_nodes,
        )

    def emptied(self) -> "NodeState":
        """As if nothing of ours were held."""
        return replace(self, gpus=tuple(GpuState(gpu=state.gpu) for state in self.gpus))

    def unlent(self) -> "NodeState":
        """As if calibrations had given back all that they hold."""
        kept = (
            GpuState(gpu=state.gpu, holdings=tuple(h for h in state.holdings if not h.calibration))
            for state in self.gpus
        )
        return replace(self, gpus=tuple(kept))


def _fragment(gpu: Gpu, free_bytes: int) -> Fragment:
    return Fragment(gpu.id, gpu.gpu_type, free_bytes, gpu.utilisation or 0.0, frozenset(gpu.linked))


def _without(state: GpuState, holder: tuple[UUID, int] | None) -> GpuState:
    others = tuple(h for h in state.holdings if (h.deployment_id, h.replica) != holder)
    return GpuState(gpu=state.gpu, holdings=others)


def heard(nodes: Sequence[NodeState], timeout_s: float) -> list[NodeState]:
    """The nodes whose last report is at most `timeout_s` older than the newest of all.

    Not older than now: after an outage of our own, every node would be taken for silent.
    """
    newest = max((node.reported_at_s for node in nodes), default=0)
    return [node for node in nodes if newest - node.reported_at_s <= timeout_s]


class Inventory:
    def __init__(self, redis: Store) -> None:
        self._redis = redis
        self._report = redis.register_script(Path(__file__).with_name("report.lua").read_text())

    async def report(self, message: NodeReported) -> None:
        gpus = _GPUS.dump_json(message.gpus).decode()
        limits = [part for gpu in message.gpus for part in (keys.limit(gpu.id), gpu.total_bytes - gpu.foreign_bytes)]
        facts = [*limits, "spans_nodes", int(message.spans_nodes)]
        await self._report([keys.NODES, keys.node(message.node)], [message.node, message.engine, gpus, *facts])

    async def snapshot(self) -> list[NodeState]:
        """Every node, by name. Each is read whole; together they may be of different moments."""
        names = sorted(await self._redis.smembers(keys.NODES))
        nodes: list[NodeState] = []
        for start in range(0, len(names), _NODES_A_ROUND_TRIP):
            nodes += await self.nodes(names[start : start + _NODES_A_ROUND_TRIP])
        return nodes

    async def nodes(self, names: Sequence[str]) -> list[NodeState]:
        """These nodes, without those that never reported."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            for name in names:
                pipeline.hgetall(keys.node(name))
                pipeline.hgetall(keys.held(name))
            answers: list[dict[str, str]] = await pipeline.execute() if names else []
        pairs = zip(names, answers[::2], answers[1::2], strict=True)
        return [_node_state(name, facts, held) for name, facts, held in pairs if facts]

    async def deployments(self, node: str) -> list[UUID]:
        """Those that hold something on a node."""
        holders = [keys.parse_holding(field) for field in await self._redis.hkeys(keys.held(node))]
        return sorted({owner for _, owner, replica in holders if replica is not None})


def _node_state(name: str, facts: Mapping[str, str], held: Mapping[str, str]) -> NodeState:
    holdings: dict[str, list[Holding]] = {}
    for field, num_bytes in sorted(held.items()):
        gpu, owner, replica = keys.parse_holding(field)
        holding = Holding(deployment_id=owner, replica=replica or 0, bytes=int(num_bytes), calibration=replica is None)
        holdings.setdefault(gpu, []).append(holding)
    states = tuple(
        GpuState(gpu=gpu, holdings=tuple(holdings.get(gpu.id, ()))) for gpu in _GPUS.validate_json(facts["gpus"])
    )
    spans_nodes = facts.get("spans_nodes") == "1"
    return NodeState(name, facts["engine"], int(facts["reported_at_s"]), states, spans_nodes)
