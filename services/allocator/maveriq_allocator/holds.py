"""Bytes that calibrations hold for a while, in Redis, counted with the reservations'. Keys: see `keys`.

A hold ends when it is freed, or when it was not asked for again in time: a profiler that died keeps nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from maveriq.contracts import GpuState, MemoryRequested, Value
from maveriq_allocator import keys
from maveriq_allocator.node_state import NodeState
from maveriq_allocator.store import Store

WANTED_S = 45  # calibrations keep away so long, until the deployment's next try: retries come after at most 16 s
MAX_WAITS = 4  # of a deployment, 30 s in all; a message is handed out five times
MAX_TAKEN = 8  # times that bytes may be taken before our eyes; then there are none


class Place(Value):
    """Where a hold is."""

    node: str
    gpu: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`place` None: nothing is held, and why."""

    place: Place | None
    problem: str = ""
    is_new: bool = False
    largest_bytes: int = 0


class Holds:
    def __init__(self, redis: Store) -> None:
        self._redis = redis
        self._hold = redis.register_script(Path(__file__).with_name("hold.lua").read_text())
        self._free = redis.register_script(Path(__file__).with_name("free.lua").read_text())

    async def find(self, hold_id: UUID) -> Place | None:
        text = await self._redis.hget(keys.HOLDS, str(hold_id))
        return None if text is None else Place.model_validate_json(text)

    async def take(self, wanted: MemoryRequested, place: Place) -> Answer | None:
        """Hold the bytes there, or keep what the id holds already; None: they were taken meanwhile."""
        touched = [keys.HOLDS, keys.HOLD_ENDS, keys.node(place.node), keys.held(place.node), keys.CHANGES]
        keep_ms = int(wanted.keep_s * 1e3)
        field = keys.hold(place.gpu, wanted.hold_id)
        told = [str(wanted.hold_id), field, place.gpu, str(wanted.bytes), str(keep_ms), place.model_dump_json()]
        outcome, *where = await self._hold(touched, told)
        if outcome == "taken":
            return None
        return Answer(Place.model_validate_json(where[0]), is_new=outcome == "held")

    async def free(self, hold_id: UUID, *, only_if_over: bool = False) -> Place | None:
        """Give it back; where it was, or None where it holds nothing (any more)."""
        place = await self.find(hold_id)
        if place is None:
            return None
        touched = [keys.HOLDS, keys.HOLD_ENDS, keys.node(place.node), keys.held(place.node), keys.CHANGES]
        told = [str(hold_id), keys.hold(place.gpu, hold_id), place.gpu, "1" if only_if_over else "0"]
        return place if await self._free(touched, told) else None

    async def want_back(self, deployment_id: UUID) -> bool:
        """Ask calibrations for all that they hold; False: this deployment has waited long enough for that."""
        await self._redis.set(keys.WANTED, str(deployment_id), ex=WANTED_S)
        asked = f"{keys.WANTED}:{deployment_id}"
        num_asked = await self._redis.incr(asked)
        await self._redis.expire(asked, WANTED_S)
        return int(num_asked) <= MAX_WAITS

    async def is_wanted_back(self) -> bool:
        return bool(await self._redis.exists(keys.WANTED))

    async def end(self) -> list[Place]:
        """Give back all whose time is over."""
        now_s, now_us = await self._redis.time()
        due = await self._redis.zrangebyscore(keys.HOLD_ENDS, "-inf", now_s * 1000 + now_us // 1000)
        freed = [await self.free(UUID(hold_id), only_if_over=True) for hold_id in due]
        return [place for place in freed if place is not None]


def best_place(wanted: MemoryRequested, nodes: Sequence[NodeState]) -> Place | None:
    """The GPU with the fewest holders, for their work would be measured along; of those the one with most free."""
    fitting = [(node, state) for node, state in _allowed(wanted, nodes) if _room(node, state) >= wanted.bytes]
    if not fitting:
        return None
    node, state = min(fitting, key=lambda each: (len(each[1].holdings), -each[0].free_bytes(each[1]), each[1].gpu.id))
    return Place(node=node.name, gpu=state.gpu.id)


def largest_bytes(wanted: MemoryRequested, nodes: Sequence[NodeState]) -> int:
    """Most that one of the GPUs has when nobody holds any of it; 0: none is there."""
    emptied = [node.emptied() for node in nodes]
    return max((_room(node, state) for node, state in _allowed(wanted, emptied)), default=0)


def why_none(wanted: MemoryRequested, nodes: Sequence[NodeState]) -> str:
    allowed = _allowed(wanted, nodes)
    if not allowed:
        which = f", of {', '.join(wanted.gpus)}," if wanted.gpus else ""
        return f"no worker reports a GPU of type {wanted.gpu_type}{which} now; start one, or wait until it reports"
    node, most = max(allowed, key=lambda each: _room(*each))
    text = (
        f"{wanted.bytes / 2**20:.0f} MiB of one {wanted.gpu_type} are wanted; "
        f"{most.gpu.id} has most, {_room(node, most) / 2**20:.0f} of {most.gpu.total_bytes / 2**20:.0f} MiB"
    )
    if node.headroom_bytes:
        text += f" beside the {node.headroom_bytes / 2**20:.0f} MiB that its node keeps free (MAVERIQ_HEADROOM)"
    return text


def _room(node: NodeState, state: GpuState) -> int:
    """Bytes of this GPU that may be held."""
    return min(node.free_bytes(state), node.spare_bytes())


def _allowed(wanted: MemoryRequested, nodes: Sequence[NodeState]) -> list[tuple[NodeState, GpuState]]:
    return [
        (node, state)
        for node in nodes
        for state in node.gpus
        if state.gpu.gpu_type == wanted.gpu_type and (not wanted.gpus or state.gpu.id in wanted.gpus)
    ]
