"""Whether stages may be reserved. Pure: a placement's stages and a node's fragments in, what is wrong with them out.

Written apart from `packing` and checked on everything it returns: an over-commitment kills engines that run.
"""

from collections.abc import Collection, Iterator, Sequence

from maveriq.contracts import Candidate, PlannedStage, Stage, StageMemory
from maveriq_allocator.packing import Fragment


class Unsound(Exception):
    """A packing broke a rule: an error of ours, never of the intent."""


def check(
    stages: Sequence[Stage], candidate: Candidate, num_layers: int, fragments: Sequence[Fragment], *,
    types: Collection[str] = (), spans_nodes: bool = False, spare_bytes: int | None = None,
) -> None:  # fmt: skip
    """Raises Unsound with every rule that `stages` break.

    Args:
        spare_bytes: that may be taken of the node's GPUs together; None: whatever is free.
    """
    broken = list(violations(stages, candidate, num_layers, fragments, types=types, spans_nodes=spans_nodes))
    held = sum(stage.reserved_bytes * len(stage.gpus) for stage in stages)
    if spare_bytes is not None and held > spare_bytes:
        broken.append(f"{held} bytes held, {spare_bytes} may be of the node")
    if broken:
        raise Unsound("; ".join(broken))


def violations(
    stages: Sequence[Stage], candidate: Candidate, num_layers: int, fragments: Sequence[Fragment], *,
    types: Collection[str] = (), spans_nodes: bool = False,
) -> Iterator[str]:  # fmt: skip
    """What is wrong, in words; nothing where the stages can be run.

    Args:
        types: that may be used; none told: only the candidate's own.
    """
    configuration = candidate.configuration
    if len(stages) != configuration.pp:
        yield f"{len(stages)} stages, not {configuration.pp}"
    if candidate.stages and len(stages) != len(candidate.stages):
        yield f"{len(stages)} stages, {len(candidate.stages)} planned"
    if sum(stage.num_layers for stage in stages) != num_layers:
        yield f"{sum(stage.num_layers for stage in stages)} layers, not {num_layers}"
    taken = [gpu for stage in stages for gpu in stage.gpus]
    if len(set(taken)) != len(taken):
        yield "a GPU is taken twice"
    there = {fragment.gpu: fragment for fragment in fragments}
    for number, stage in enumerate(stages):
        if len(stage.gpus) != configuration.tp:
            yield f"stage {number}: {len(stage.gpus)} ranks, not {configuration.tp}"
        planned = candidate.stages[number] if number < len(candidate.stages) else None
        if planned is not None:
            needed = planned.reserved_bytes
            yield from (f"stage {number}: {told}" for told in _replanned(stage, planned))
        else:
            needed = _needed_bytes(candidate.memory, stage, is_first=number == 0, is_last=number == len(stages) - 1)
        if stage.reserved_bytes != needed:
            yield f"stage {number}: {stage.reserved_bytes} bytes reserved, {needed} needed"
        ranks = [there[gpu] for gpu in stage.gpus if gpu in there]
        allowed = types or (configuration.gpu_type,) if planned is None else (planned.gpu_type,)
        yield from (f"stage {number}: {gpu} is not on the node" for gpu in stage.gpus if gpu not in there)
        yield from (f"stage {number}: {told}" for told in _misplaced(ranks, allowed, needed))
    if not spans_nodes and len({there[gpu].node for gpu in taken if gpu in there}) > 1:
        yield "the stages are on several nodes"


def _replanned(stage: Stage, planned: PlannedStage) -> Iterator[str]:
    if stage.precisions != planned.precisions or stage.num_layers != len(planned.precisions):
        yield f"{stage.num_layers} layers of other precisions than planned"
    if len(stage.gpus) != 1:
        yield "a planned stage has one GPU"


def _needed_bytes(memory: StageMemory, stage: Stage, *, is_first: bool, is_last: bool) -> int:
    needed = memory.runtime_bytes + stage.num_layers * memory.layer_bytes
    needed += memory.first_bytes if is_first else 0
    needed += memory.last_bytes if is_last else 0
    return needed - (memory.tied_saving_bytes if is_first and is_last else 0)


def _misplaced(ranks: Sequence[Fragment], types: Collection[str], needed: int) -> Iterator[str]:
    if len({fragment.node for fragment in ranks}) > 1:
        yield "its ranks are on several nodes"
    if len({fragment.gpu_type for fragment in ranks}) > 1:
        yield "its ranks are of several GPU types"
    for fragment in ranks:
        if fragment.gpu_type not in types:
            yield f"{fragment.gpu} is no {' or '.join(types)}"
        elif fragment.free_bytes < needed:
            yield f"{needed} bytes needed on {fragment.gpu}, {fragment.free_bytes} free"
