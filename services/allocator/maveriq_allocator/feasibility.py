"""Whether stages may be reserved. Pure: a placement's stages and a node's fragments in, what is wrong with them out.

Written apart from `packing` and checked on everything it returns: an over-commitment kills engines that run.
"""

from collections.abc import Iterator, Sequence

from maveriq.contracts import Candidate, Stage
from maveriq_allocator.packing import Fragment


class Unsound(Exception):
    """A packing broke a rule: an error of ours, never of the intent."""


def check(stages: Sequence[Stage], candidate: Candidate, num_layers: int, fragments: Sequence[Fragment]) -> None:
    """Raises Unsound with every rule that `stages` break."""
    broken = list(violations(stages, candidate, num_layers, fragments))
    if broken:
        raise Unsound("; ".join(broken))


def violations(
    stages: Sequence[Stage], candidate: Candidate, num_layers: int, fragments: Sequence[Fragment]
) -> Iterator[str]:
    """What is wrong, in words; nothing where the stages can be run."""
    configuration, memory = candidate.configuration, candidate.memory
    free = {fragment.gpu: fragment for fragment in fragments}
    if len(stages) != configuration.pp:
        yield f"{len(stages)} stages, not {configuration.pp}"
    if sum(stage.num_layers for stage in stages) != num_layers:
        yield f"{sum(stage.num_layers for stage in stages)} layers, not {num_layers}"
    taken = [gpu for stage in stages for gpu in stage.gpus]
    if len(set(taken)) != len(taken):
        yield "a GPU is taken twice"
    for number, stage in enumerate(stages):
        if len(stage.gpus) != configuration.tp:
            yield f"stage {number}: {len(stage.gpus)} ranks, not {configuration.tp}"
        needed = memory.runtime_bytes + stage.num_layers * memory.layer_bytes
        needed += memory.first_bytes if number == 0 else 0
        needed += memory.last_bytes if number == len(stages) - 1 else 0
        needed -= memory.tied_saving_bytes if len(stages) == 1 else 0
        if stage.reserved_bytes != needed:
            yield f"stage {number}: {stage.reserved_bytes} bytes reserved, {needed} needed"
        for gpu in stage.gpus:
            if gpu not in free:
                yield f"stage {number}: {gpu} is not on the node"
            elif free[gpu].gpu_type != configuration.gpu_type:
                yield f"stage {number}: {gpu} is no {configuration.gpu_type}"
            elif free[gpu].free_bytes < needed:
                yield f"stage {number}: {needed} bytes needed on {gpu}, {free[gpu].free_bytes} free"
