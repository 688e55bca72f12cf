"""One node as last reported, and what is held on it. Pure: reports and holdings in, what may be taken out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
    heard_at_ms: int
    """How long allocators had listened when it last reported."""
    limits: Mapping[str, int]
    """By GPU, the bytes that are ours to hold."""
    headroom_bytes: int
    """That stay free on its GPUs together."""
    versions: Mapping[str, str]
    """By GPU; another one: what is held on it, or its limit, has changed."""
    _free: Node = field(init=False, compare=False, repr=False)
    """Made once, as the next: a decision looks at every node, and few of them have changed since the last."""
    _whole: Node | None = field(init=False, compare=False, repr=False, default=None)
    """None: nobody asked yet."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_free", self._offered(None))

    def message(self, *, silent: bool) -> InventoryChanged:
        return InventoryChanged(
            node=self.name, engine=self.engine, gpus=self.gpus, headroom_bytes=self.headroom_bytes, silent=silent
        )

    def fragments(self, apart_from: tuple[UUID, int] | None = None) -> Node:
        """What is free here, taking as free what is held for the replica `apart_from`."""
        is_there = apart_from is not None and any(
            (holding.deployment_id, holding.replica) == apart_from for state in self.gpus for holding in state.holdings
        )
        return self._offered(apart_from) if is_there else self._free

    def _offered(self, apart_from: tuple[UUID, int] | None) -> Node:
        return Node(
            self.name,
            self.engine,
            tuple(_fragment(s.gpu, self.free_bytes(_without(s, apart_from))) for s in self.gpus),
            self.spans_nodes,
            self.headroom_bytes,
        )

    def whole(self) -> Node:
        """What would be free here if nothing of ours were held."""
        if self._whole is None:
            object.__setattr__(self, "_whole", self.emptied().fragments())
        assert self._whole is not None, "it was just made"
        return self._whole

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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Nodes, each as it was at one moment. An outage of our own is nobody's silence: see `tick.lua`."""

    nodes: tuple[NodeState, ...]
    listened_ms: int
    """How long allocators have listened."""

    def __iter__(self) -> Iterator[NodeState]:
        return iter(self.nodes)

    def is_silent(self, node: NodeState, timeout_s: float) -> bool:
        """Whether it did not report for longer."""
        return self.listened_ms - node.heard_at_ms > 1e3 * timeout_s

    def heard(self, timeout_s: float) -> list[NodeState]:
        """The nodes that are not silent for longer."""
        return [node for node in self.nodes if not self.is_silent(node, timeout_s)]
