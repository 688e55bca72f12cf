"""Nodes as Redis keeps them: what workers reported and what is held, decoded once for each change. Keys: see `keys`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydantic import TypeAdapter

from maveriq.contracts import Gpu, GpuState, Holding
from maveriq_allocator import keys
from maveriq_allocator.drift import drift
from maveriq_allocator.node_state import NodeState, Snapshot
from maveriq_allocator.store import Store

GPUS = TypeAdapter(tuple[Gpu, ...])
_NODES_A_ROUND_TRIP = 200


@dataclass(frozen=True, slots=True)
class _Decoded:
    change: str
    """Its number before the node was read: what was read is that or newer."""
    node: NodeState


class Nodes:
    def __init__(self, redis: Store) -> None:
        self._redis = redis
        self._decoded: dict[str, _Decoded] = {}

    async def all(self) -> Snapshot:
        """Every node, by name. Each is read whole; together they may be of different moments."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(keys.CHANGES)
            pipeline.hget(keys.WATCH, "listened_ms")
            changes, listened_ms = await pipeline.execute()
        known = {name: one for name, one in self._decoded.items() if changes.get(name) == one.change}
        stale = sorted(changes.keys() - known.keys())
        for start in range(0, len(stale), _NODES_A_ROUND_TRIP):
            for node in await self.of(stale[start : start + _NODES_A_ROUND_TRIP]):
                known[node.name] = _Decoded(changes[node.name], node)
        self._decoded = known  # another look may have been faster: what it read anew is then read once more
        return Snapshot(tuple(known[name].node for name in sorted(known)), int(listened_ms or 0))

    async def of(self, names: Sequence[str]) -> Snapshot:
        """These nodes, without those that never reported."""
        if not names:
            return Snapshot((), 0)
        async with self._redis.pipeline(transaction=True) as pipeline:
            for name in names:
                pipeline.hgetall(keys.node(name))
                pipeline.hgetall(keys.held(name))
            pipeline.hget(keys.WATCH, "listened_ms")
            *answers, listened_ms = await pipeline.execute()
        pairs = zip(names, answers[::2], answers[1::2], strict=True)
        nodes = tuple(_node_state(name, facts, held) for name, facts, held in pairs if "gpus" in facts)
        return Snapshot(nodes, int(listened_ms or 0))


def _node_state(name: str, facts: Mapping[str, str], held: Mapping[str, str]) -> NodeState:
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
        heard_at_ms=int(facts["heard_at_ms"]),
        headroom_bytes=int(facts.get("headroom", 0)),
        limits={state.gpu.id: int(facts[keys.limit(state.gpu.id)]) for state in states},
        versions={state.gpu.id: facts[keys.version(state.gpu.id)] for state in states},
    )


def _gpu_state(gpu: Gpu, holdings: tuple[Holding, ...]) -> GpuState:
    told = drift(gpu, sum(holding.bytes for holding in holdings))
    return GpuState.model_construct(gpu=gpu, holdings=holdings, drift=told)


@lru_cache(maxsize=4096)  # a node's, until it reports others
def _gpus(text: str) -> tuple[Gpu, ...]:
    return GPUS.validate_json(text)
