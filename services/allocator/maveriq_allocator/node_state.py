"""One node as last reported, and what is held on it. Pure: reports and holdings in, what may be taken out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from maveriq.contracts import Gpu, GpuState, InventoryChanged
from maveriq_allocator.choosing import Node
from maveriq_allocator.packing import Fragment


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node as last reported, and what is held on it."""

    name: str
    engine: str
    gpus: tuple[GpuState, ...]
    spans_nodes: bool
    silent_s: float
    """How long allocators have listened since its last report."""
    limits: Mapping[str, int]
    """By GPU, the bytes that are ours to hold."""
    headroom_bytes: int
    """That stay free on its GPUs together."""
    versions: Mapping[str, str]
    """By GPU; another one: what is held on it, or its limit, has changed."""

    def message(self, timeout_s: float) -> InventoryChanged:
        return InventoryChanged(
            node=self.name, engine=self.engine, gpus=self.gpus, headroom_bytes=self.headroom_bytes,
            silent=self.silent_s > timeout_s,
        )  # fmt: skip

    def fragments(self, apart_from: tuple[UUID, int] | None = None) -> Node:
        """What is free here, taking as free what is held for the replica `apart_from`."""
        return Node(
            self.name,
            self.engine,
            tuple(_fragment(s.gpu, self.free_bytes(_without(s, apart_from))) for s in self.gpus),
            self.spans_nodes,
            self.headroom_bytes,
        )

    def emptied(self) -> "NodeState":
        """As if nothing of ours were held."""
        return replace(self, gpus=tuple(GpuState(gpu=state.gpu) for state in self.gpus))

    def free_bytes(self, state: GpuState) -> int:
        """That may be held of a GPU here, as far as this alone counts."""
        return max(0, self.limits.get(state.gpu.id, 0) - sum(holding.bytes for holding in state.holdings))

    def spare_bytes(self) -> int:
        """That may be held of all GPUs here together."""
        return max(0, sum(self.free_bytes(state) for state in self.gpus) - self.headroom_bytes)

    def unlent(self) -> "NodeState":
        """As if calibrations had given back all that they hold."""
        kept = (
            GpuState(gpu=state.gpu, holdings=tuple(h for h in state.holdings if not h.calibration))
            for state in self.gpus
        )
        return replace(self, gpus=tuple(kept))


def _fragment(gpu: Gpu, free_bytes: int) -> Fragment:
    reached = frozenset(gpu.linked), frozenset(gpu.near)
    return Fragment(gpu.id, gpu.gpu_type, free_bytes, gpu.utilisation or 0.0, *reached)


def _without(state: GpuState, holder: tuple[UUID, int] | None) -> GpuState:
    if holder is None:
        return state
    others = tuple(h for h in state.holdings if (h.deployment_id, h.replica) != holder)
    return GpuState(gpu=state.gpu, holdings=others)


def heard(nodes: Sequence[NodeState], timeout_s: float) -> list[NodeState]:
    """The nodes that are not silent for longer. An outage of our own is nobody's silence: see `tick.lua`."""
    return [node for node in nodes if node.silent_s <= timeout_s]
