"""Why a candidate does not fit, for people. Pure: a candidate and nodes in, words out.

What it needs, what is short of it on the node that comes closest, and the largest fragments there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from maveriq.contracts import Candidate, StageMemory
from maveriq_allocator.evenness import capacity
from maveriq_allocator.fleet import Fleet, Node
from maveriq_allocator.manner import Manner
from maveriq_allocator.planned_shortages import headroom_in_the_way, planned_short, planned_wanted
from maveriq_allocator.seating import num_seated
from maveriq_allocator.words import names, readable

NUM_NODES_TOLD = 3
NUM_GPUS_TOLD = 8  # of a node
MAX_REPLICAS_TRIED = 50  # two milliseconds each
_NONE = -(2**40)


def shortage(candidate: Candidate, num_layers: int, nodes: Sequence[Node], num_replicas: int) -> str:
    """What `candidate` would have needed, what of it is short, and the largest fragments there are."""
    if candidate.stages:
        wanted = planned_wanted(candidate, num_replicas)
        short = planned_short(candidate, num_layers, nodes, num_replicas)
    else:
        wanted = _wanted(candidate, num_layers, num_replicas)
        short = _short(candidate, num_layers, nodes, num_replicas)
    told = f"needed: {wanted}; {short}"
    largest = _largest_fragments(candidate, nodes)
    return f"{told}; largest fragments: {largest}" if largest else told


def _wanted(candidate: Candidate, num_layers: int, num_replicas: int) -> str:
    configuration, memory = candidate.configuration, candidate.memory
    others = sorted({speed.gpu_type for speed in candidate.mixable} - {configuration.gpu_type})
    types = f"{configuration.gpu_type} (or with {', '.join(others)})" if others else configuration.gpu_type
    return (
        f"{num_replicas} x "
        * (num_replicas > 1)
        + f"{configuration.num_gpus} GPU(s) {types} of one node with engine {configuration.engine} "
        f"(tp {configuration.tp}, pp {configuration.pp}, {configuration.precision}), "
        f"{_bytes_wanted(memory, num_layers, configuration.pp, configuration.tp)} to hold {num_layers} layers "
        f"of {readable(memory.layer_bytes)} each"
    )


def _bytes_wanted(memory: StageMemory, num_layers: int, pp: int, tp: int) -> str:
    if pp == 1:
        return f"{readable(memory.of_stage(num_layers, first=True, last=True))} free on each,"
    total = pp * memory.runtime_bytes + num_layers * memory.layer_bytes + memory.first_bytes + memory.last_bytes
    ranks = " of each rank" * (tp > 1)
    first, last = _of_one_layer(memory, first=True), _of_one_layer(memory, last=True)
    return (
        f"{readable(total)} free over the stages{ranks}, "
        f"at least {readable(first)} on the first and {readable(last)} on the last,"
    )


def _of_one_layer(memory: StageMemory, *, first: bool = False, last: bool = False) -> int:
    return memory.of_stage(1, first=first, last=last)


def _short(candidate: Candidate, num_layers: int, nodes: Sequence[Node], num_replicas: int) -> str:
    """The first thing that is missing: nodes, the engine, the type, GPUs on one node, room on them, or replicas."""
    configuration = candidate.configuration
    if not nodes:
        missing = f"no node with engine {configuration.engine} has a {configuration.gpu_type}"
        return f"short of nodes: {missing}, none reports at all"
    running = [node for node in nodes if node.engine == configuration.engine]
    if not running:
        return f"short of nodes: no node runs engine {configuration.engine}, only {names(n.engine for n in nodes)}"
    free = [(node.name, _free_of_type(node, configuration.gpu_type)) for node in running]
    if not any(frees for _, frees in free):
        types = names(f.gpu_type for node in running for f in node.fragments)
        return f"short of GPUs: no node with engine {configuration.engine} has a {configuration.gpu_type}, only {types}"
    name, most = max(free, key=lambda entry: len(entry[1]))
    if len(most) < configuration.num_gpus:
        return (
            f"short of GPUs on one node: {configuration.num_gpus} {configuration.gpu_type} needed, "
            f"{len(most)} on {name} are the most"
        )
    rooms = [room for room in (_Room.of(node, frees, candidate, num_layers) for node, frees in free) if room]
    closest = max(rooms, key=lambda room: (room.num_stages, room.num_layers))
    words = closest.words(candidate, num_layers)
    if words is not None:
        return f"short of {words}"
    holding = {room.node for room in rooms if room.words(candidate, num_layers) is None}
    needed_bytes = Manner().shape(candidate, num_layers).needed_bytes
    if (kept := headroom_in_the_way([node for node in running if node.name in holding], needed_bytes)) is not None:
        return f"short of {kept}"
    fleet = Fleet(running, {configuration.gpu_type}, Manner().preference)
    num_found = num_seated(candidate, num_layers, fleet, min(num_replicas, MAX_REPLICAS_TRIED))
    at_least = "at least " * (num_found == MAX_REPLICAS_TRIED)
    return f"short of memory for all replicas: {at_least}{num_found} of {num_replicas} found a seat"


@dataclass(frozen=True, slots=True)
class _Room:
    """What the richest ranks of one node hold."""

    node: str
    num_stages: int
    """That hold a layer each, of those needed."""
    num_layers: int
    """With both ends; `_NONE` where these have no place."""
    num_without_ends: int
    has_first: bool
    has_last: bool

    @classmethod
    def of(cls, node: str, frees: Sequence[int], candidate: Candidate, num_layers: int) -> "_Room | None":
        """None: too few GPUs.

        Args:
            frees: bytes of each GPU, most first.
        """
        pp, tp, memory = candidate.configuration.pp, candidate.configuration.tp, candidate.memory
        poorest = frees[tp - 1 :: tp][:pp]
        if len(poorest) < pp:
            return None
        if pp == 1:
            whole = capacity(memory, poorest[0], first=True, last=True)
            return cls(node, 1, whole, capacity(memory, poorest[0], first=False, last=False), whole >= 1, whole >= 1)
        middle = [capacity(memory, free, first=False, last=False) for free in poorest]
        first = [capacity(memory, free, first=True, last=False) for free in poorest]
        last = [capacity(memory, free, first=False, last=True) for free in poorest]
        with_ends = [
            sum(middle) - middle[a] - middle[b] + first[a] + last[b]
            for a in range(pp)
            for b in range(pp)
            if a != b and first[a] >= 1 and last[b] >= 1
        ]
        num_stages = sum(layers >= 1 for layers in middle)
        return cls(node, num_stages, max(with_ends, default=_NONE), sum(middle), max(first) >= 1, max(last) >= 1)

    def words(self, candidate: Candidate, num_layers: int) -> str | None:
        """None: it holds one replica."""
        configuration, memory = candidate.configuration, candidate.memory
        where = f"{self.node} comes closest"
        each = "each of its GPUs" if configuration.tp == 1 else f"each of a stage's {configuration.tp} GPUs"
        if self.num_stages < configuration.pp:
            return (
                f"stages: {where}, where {self.num_stages} of {configuration.pp} stages find "
                f"{readable(_of_one_layer(memory))} on {each}, the least for one layer"
            )
        if self.num_layers >= num_layers:
            return None
        for has_it, end, least in (
            (self.has_first, "first", _of_one_layer(memory, first=True)),
            (self.has_last, "last", _of_one_layer(memory, last=True)),
        ):
            if configuration.pp > 1 and not has_it:
                return f"room for the {end} stage: {where}, but nothing there has {readable(least)}"
        if configuration.pp > 1 and self.num_layers < 0:
            return f"room for the first and the last stage: {where}, but only one GPU there has room for either"
        ends = " with embedding and lm_head" + (
            f", though {num_layers} without" if self.num_without_ends >= num_layers else ""
        )
        return f"layers: {where} and holds {max(0, self.num_layers)} of {num_layers}{ends}"


def _free_of_type(node: Node, *types: str) -> list[int]:
    return sorted((f.free_bytes for f in node.fragments if f.gpu_type in types), reverse=True)


def _largest_fragments(candidate: Candidate, nodes: Sequence[Node]) -> str:
    """'': no node has a GPU that may be used."""
    types = Manner().types(candidate)
    told = [(_free_of_type(node, *types), node.name) for node in nodes if node.engine == candidate.configuration.engine]
    told = sorted((entry for entry in told if entry[0]), key=lambda entry: (entry[0], entry[1]), reverse=True)
    return "; ".join(
        f"{name}: {', '.join(readable(free) for free in frees[:NUM_GPUS_TOLD])}"
        for frees, name in told[:NUM_NODES_TOLD]
    )
