"""What a decision is made from: the nodes at one moment, and what is kept from whom. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from maveriq_allocator.choosing import Node
from maveriq_allocator.node_state import NodeState, Snapshot
from maveriq_allocator.waiting import without


@dataclass(frozen=True, slots=True)
class Situation:
    snapshot: Snapshot
    """Every node known."""
    node_timeout_s: float
    kept: frozenset[str] = frozenset()
    """GPUs that are claimed by somebody ahead."""
    avoided: frozenset[str] = frozenset()
    """Nodes that are given up for lost, whatever they last said."""

    @property
    def nodes(self) -> Sequence[NodeState]:
        return self.snapshot.nodes

    def free(self, apart_from: tuple[UUID, int] | None = None) -> list[Node]:
        """What may be taken now, taking as free what the replica `apart_from` holds."""
        present = self.snapshot.heard(self.node_timeout_s)
        return without([node.fragments(apart_from) for node in present if node.name not in self.avoided], self.kept)

    def emptied(self) -> list[Node]:
        """All nodes as if nothing of ours were held; the silent ones may come back."""
        return [node.whole() for node in self.nodes]

    def silent(self) -> list[str]:
        present = {node.name for node in self.snapshot.heard(self.node_timeout_s)} - self.avoided
        return sorted({node.name for node in self.nodes} - present)

    def unlent(self) -> "Situation":
        """As if calibrations had given back what they hold."""
        return replace(self, snapshot=replace(self.snapshot, nodes=tuple(node.unlent() for node in self.nodes)))

    @property
    def is_lent(self) -> bool:
        return any(h.calibration for node in self.nodes for state in node.gpus for h in state.holdings)

    def avoiding(self, nodes: Collection[str]) -> "Situation":
        return replace(self, avoided=self.avoided | frozenset(nodes))
