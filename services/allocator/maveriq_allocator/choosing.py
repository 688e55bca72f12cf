"""Which candidate, which nodes, which GPUs. Pure: a plan and what is free in, one choice for all replicas out.

The first candidate that fits wins: the planner ranked them. Its replicas are placed one after the other, each on the
node where its largest stage is smallest, and of those where the least memory is stranded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from maveriq.contracts import Candidate, Plan, Stage, StageMemory
from maveriq_allocator.feasibility import check
from maveriq_allocator.packing import Fragment, Packing, capacity, pack, smallest_largest_stage

NUM_NODES_COMPARED = 16  # equally fast nodes on which packings are compared: those with the least free memory
NUM_NODES_TOLD = 3  # in the reason for a refusal


@dataclass(frozen=True, slots=True)
class Node:
    """What is free on one node that runs one engine."""

    name: str
    engine: str
    fragments: tuple[Fragment, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one replica goes."""

    node: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate, and a seat for each replica."""

    rank: int
    """Of the candidate in its plan."""
    seats: tuple[Seat, ...]


def choose(plan: Plan, nodes: Sequence[Node], *, num_replicas: int | None = None, start: int = 0) -> Choice | None:
    """Seats for all replicas, or for none: None where no candidate from rank `start` on fits.

    Args:
        num_replicas: None: as many as each candidate says.
    """
    for rank in range(start, len(plan.candidates)):
        candidate = plan.candidates[rank]
        seats = _seat_all(candidate, plan.facts.num_layers, nodes, num_replicas or candidate.replicas)
        if seats is not None:
            return Choice(rank, seats)
    return None


def _seat_all(
    candidate: Candidate, num_layers: int, nodes: Sequence[Node], num_replicas: int
) -> tuple[Seat, ...] | None:
    usable = _usable(candidate, nodes)
    seats = _seat(candidate, num_layers, usable, num_replicas, tight=False)
    if seats is None and num_replicas > 1:
        seats = _seat(candidate, num_layers, usable, num_replicas, tight=True)
    return seats


def _usable(candidate: Candidate, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that run the candidate's engine, with their GPUs of its type on which a stage could sit at all."""
    configuration = candidate.configuration
    usable = [
        replace(node, fragments=tuple(f for f in node.fragments if _is_usable(candidate, f)))
        for node in nodes
        if node.engine == configuration.engine
    ]
    return [node for node in usable if len(node.fragments) >= configuration.num_gpus]


def _is_usable(candidate: Candidate, fragment: Fragment) -> bool:
    if fragment.gpu_type != candidate.configuration.gpu_type:
        return False
    alone = candidate.configuration.pp == 1
    return capacity(candidate.memory, fragment.free_bytes, first=alone, last=alone) >= 1


def _seat(
    candidate: Candidate, num_layers: int, nodes: Sequence[Node], num_replicas: int, *, tight: bool
) -> tuple[Seat, ...] | None:
    left = {node.name: node for node in nodes}
    paces = {node.name: pace for node in nodes if (pace := _pace(candidate, num_layers, node)) is not None}
    packed: dict[str, Packing] = {}
    seats: list[Seat] = []
    while len(seats) < num_replicas:
        name = _best_node(candidate, num_layers, left, paces, packed, tight=tight)
        if name is None:
            return None
        check(packed[name].stages, candidate, num_layers, left[name].fragments)
        seats.append(Seat(name, packed[name].stages))
        left[name] = _without(left[name], packed.pop(name).stages)
        pace = _pace(candidate, num_layers, left[name])
        if pace is None:
            del paces[name]
        else:
            paces[name] = pace
    return tuple(seats)


def _pace(candidate: Candidate, num_layers: int, node: Node) -> int | None:
    """Layers of the largest stage of the next replica here; None: it does not fit."""
    configuration = candidate.configuration
    if len(node.fragments) < configuration.num_gpus or configuration.pp > num_layers:
        return None
    free_bytes = sorted((f.free_bytes for f in node.fragments), reverse=True)
    return smallest_largest_stage(
        candidate.memory, num_layers, pp=configuration.pp, tp=configuration.tp, free_bytes=free_bytes
    )


def _best_node(
    candidate: Candidate, num_layers: int, left: dict[str, Node], paces: dict[str, int], packed: dict[str, Packing],
    *, tight: bool,
) -> str | None:  # fmt: skip
    """The node for the next replica; `packed` keeps the packings of nodes that did not change since."""
    if not paces:
        return None
    fastest = min(paces.values())
    names = [name for name, pace in paces.items() if tight or pace == fastest]
    names.sort(key=lambda name: (sum(f.free_bytes for f in left[name].fragments), name))
    compared = names[:NUM_NODES_COMPARED]
    for name in compared:
        if name not in packed:
            packing = pack(
                candidate.memory, num_layers, pp=candidate.configuration.pp, tp=candidate.configuration.tp,
                fragments=left[name].fragments, tight=tight,
            )  # fmt: skip
            assert isinstance(packing, Packing), "a node with a pace can be packed"
            packed[name] = packing
    return min(compared, key=lambda name: (packed[name].stranded_bytes, name))


def _without(node: Node, stages: Sequence[Stage]) -> Node:
    """The node once `stages` are taken."""
    held = {gpu: stage.reserved_bytes for stage in stages for gpu in stage.gpus}
    left = (replace(f, free_bytes=f.free_bytes - held.get(f.gpu, 0)) for f in node.fragments)
    return replace(node, fragments=tuple(left))


def shortage(candidate: Candidate, num_layers: int, nodes: Sequence[Node], num_replicas: int) -> str:
    """What `candidate` would have needed and the largest fragments there are, for people."""
    configuration, memory = candidate.configuration, candidate.memory
    needed = _needed(memory, num_layers, configuration.pp)
    wanted = (
        f"{num_replicas} x "
        * (num_replicas > 1)
        + f"{configuration.num_gpus} GPU(s) {configuration.gpu_type} of one node with engine {configuration.engine} "
        f"(tp {configuration.tp}, pp {configuration.pp}, {configuration.precision}), "
        f"{needed} to hold {num_layers} layers of {readable(memory.layer_bytes)} each"
    )
    return (
        f"needed: {wanted}; largest fragments: {_fragments_told(configuration.gpu_type, configuration.engine, nodes)}"
    )


def _needed(memory: StageMemory, num_layers: int, pp: int) -> str:
    if pp == 1:
        return f"{readable(memory.of_stage(num_layers, first=True, last=True))} free on each,"
    total = pp * memory.runtime_bytes + num_layers * memory.layer_bytes + memory.first_bytes + memory.last_bytes
    first, last = memory.of_stage(1, first=True, last=False), memory.of_stage(1, first=False, last=True)
    return (
        f"{readable(total)} free over the stages, at least {readable(first)} on the first "
        f"and {readable(last)} on the last,"
    )


def _fragments_told(gpu_type: str, engine: str, nodes: Sequence[Node]) -> str:
    told = [
        (sorted((f.free_bytes for f in node.fragments if f.gpu_type == gpu_type), reverse=True), node.name)
        for node in nodes
        if node.engine == engine
    ]
    told = sorted((entry for entry in told if entry[0]), key=lambda entry: (entry[0], entry[1]), reverse=True)
    if not told:
        return f"no node with engine {engine} has a {gpu_type}"
    return "; ".join(
        f"{name}: {', '.join(readable(free) for free in frees[:8])}" for frees, name in told[:NUM_NODES_TOLD]
    )


def readable(num_bytes: int) -> str:
    """Bytes in the largest unit that leaves a number above 1."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
