"""Why a pipeline that the planner has split does not fit, for people. Pure: a candidate and nodes in, words out."""

from collections.abc import Iterator, Sequence

from maveriq.contracts import Candidate, PlannedStage
from maveriq_allocator.fleet import Fleet, Node
from maveriq_allocator.planned import num_planned_seated, planned_types
from maveriq_allocator.strategies import Preference
from maveriq_allocator.words import names, readable

MAX_REPLICAS_TRIED = 50  # some milliseconds each on a large fleet


def planned_wanted(candidate: Candidate, num_replicas: int) -> str:
    """What it needs."""
    stages = ", ".join(
        f"{readable(stage.reserved_bytes)} free on a {stage.gpu_type} for {stage.num_layers} layers"
        for stage in candidate.stages
    )
    times = f"{num_replicas} x " * (num_replicas > 1)
    return (
        f"{times}{len(candidate.stages)} GPU(s) of one node with engine {candidate.configuration.engine}, one a stage "
        f"(split by the planner, layers of several precisions): {stages}"
    )


def planned_short(candidate: Candidate, num_layers: int, nodes: Sequence[Node], num_replicas: int) -> str:
    """The first thing that is missing: nodes, the engine, a type, GPUs on one node, room on them, or replicas."""
    engine, types = candidate.configuration.engine, sorted(planned_types(candidate))
    if not nodes:
        return f"short of nodes: no node with engine {engine} has a {' and a '.join(types)}, none reports at all"
    running = [node for node in nodes if node.engine == engine]
    if not running:
        return f"short of nodes: no node runs engine {engine}, only {names(n.engine for n in nodes)}"
    there = {f.gpu_type for node in running for f in node.fragments}
    for gpu_type in types:
        if gpu_type not in there:
            return f"short of GPUs: no node with engine {engine} has a {gpu_type}, only {names(there)}"
    seated = [(list(_seated(candidate.stages, node)), node) for node in running]
    closest, node = max(seated, key=lambda each: len(each[0]))
    if len(closest) < len(candidate.stages):
        return f"short of stages: {_lacking(candidate.stages, closest, node)}"
    holding = [node for found, node in seated if len(found) == len(candidate.stages)]
    kept = headroom_in_the_way(holding, sum(stage.reserved_bytes for stage in candidate.stages))
    if kept is not None:
        return f"short of {kept}"
    fleet = Fleet(running, types, Preference())
    num_found = num_planned_seated(candidate, num_layers, fleet, min(num_replicas, MAX_REPLICAS_TRIED))
    at_least = "at least " * (num_found == MAX_REPLICAS_TRIED)
    return f"short of memory for all replicas: {at_least}{num_found} of {num_replicas} found a seat"


def headroom_in_the_way(nodes: Sequence[Node], needed_bytes: int) -> str | None:
    """What is missing where only the bytes that each of these nodes keeps free are in the way; None: they are not."""
    node = max(nodes, key=lambda node: node.spare_bytes)
    if node.spare_bytes >= needed_bytes:
        return None
    free_bytes = sum(fragment.free_bytes for fragment in node.fragments)
    return (
        f"memory beside the headroom: {readable(needed_bytes)} would fit the GPUs of {node.name}, but of the "
        f"{readable(free_bytes)} free on them {readable(node.headroom_bytes)} stay free (MAVERIQ_HEADROOM)"
    )


def _seated(stages: Sequence[PlannedStage], node: Node) -> Iterator[int]:
    """The stages that find a GPU of this node, the smallest first: as many as can."""
    left = sorted(node.fragments, key=lambda f: f.free_bytes)
    for at in sorted(range(len(stages)), key=lambda at: stages[at].reserved_bytes):
        fits = (f for f in left if f.gpu_type == stages[at].gpu_type and f.free_bytes >= stages[at].reserved_bytes)
        found = next(fits, None)
        if found is not None:
            left.remove(found)
            yield at


def _lacking(stages: Sequence[PlannedStage], found: Sequence[int], node: Node) -> str:
    at = max((at for at in range(len(stages)) if at not in found), key=lambda at: stages[at].reserved_bytes)
    stage = stages[at]
    return (
        f"{node.name} comes closest, where {len(found)} of {len(stages)} stages find a GPU each; stage {at} needs "
        f"{readable(stage.reserved_bytes)} of a {stage.gpu_type} that no other stage takes"
    )
