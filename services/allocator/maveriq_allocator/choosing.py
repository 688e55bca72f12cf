"""Which candidate a deployment gets. Pure: a plan and what is free in, one choice for all replicas out.

The first candidate that fits wins: the planner ranked them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from maveriq.contracts import Candidate, Intent, Plan, StageMemory, Strategy
from maveriq_allocator.fleet import Fleet, Node
from maveriq_allocator.seating import Manner, Seat, seat_all
from maveriq_allocator.strategies import Preference
from maveriq_allocator.together import Budget

__all__ = ["Choice", "Manner", "Node", "Seat", "choose", "manner_of", "readable", "shortage"]

NUM_NODES_TOLD = 3  # in the reason for a refusal


def manner_of(intent: Intent, default: Strategy) -> Manner:
    """How the replicas of an intent are seated.

    Args:
        default: of intents that name no strategy.
    """
    return Manner(Preference(intent.strategy or default, intent.hybrid_threshold))


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate, and a seat for each replica."""

    rank: int
    """Of the candidate in its plan."""
    seats: tuple[Seat, ...]


def choose(
    plan: Plan, nodes: Sequence[Node], *, num_replicas: int | None = None, start: int = 0, manner: Manner | None = None
) -> Choice | None:
    """Seats for all replicas, or for none: None where no candidate from rank `start` on fits.

    A replica is mixed of the GPU types that its candidate allows only where no candidate fits on its own type.

    Args:
        num_replicas: None: as many as each candidate says.
    """
    manner = manner or Manner()
    fleets, budget = _Fleets(nodes, manner.preference), Budget()
    for is_mixed in (False, True) if manner.speeds is None else (False,):
        for rank in range(start, len(plan.candidates)):
            candidate = plan.candidates[rank]
            how = _mixed(candidate, manner) if is_mixed else manner
            if how is None:
                continue
            fleet = fleets.of(candidate.configuration.engine, how.types(candidate))
            seats = seat_all(candidate, plan.facts.num_layers, fleet, num_replicas or candidate.replicas, how, budget)
            if seats is not None:
                return Choice(rank, seats)
    return None


def _mixed(candidate: Candidate, manner: Manner) -> Manner | None:
    """None: its replicas cannot be mixed."""
    speeds = {speed.gpu_type: speed.decode_ms for speed in candidate.mixable}
    return replace(manner, speeds=speeds) if len(speeds) > 1 and candidate.configuration.pp > 1 else None


class _Fleets:
    """Arrays of a snapshot, made once for each engine and set of GPU types."""

    def __init__(self, nodes: Sequence[Node], preference: Preference) -> None:
        self._nodes, self._preference = nodes, preference
        self._made: dict[tuple[str, frozenset[str]], Fleet] = {}

    def of(self, engine: str, types: frozenset[str]) -> Fleet:
        fleet = self._made.get((engine, types))
        if fleet is None:
            fleet = Fleet([node for node in self._nodes if node.engine == engine], types, self._preference)
            self._made[engine, types] = fleet
        return fleet


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
