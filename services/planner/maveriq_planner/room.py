"""Which candidates what is free holds. Pure: candidates and fragments in, those that fit first out.

A dry run shows first what a deploy would be given: as an allocator does, a replica is seated on one node, on GPUs of
its own type, and on several types only where no candidate fits on its own. One replica is seated wherever it fits.
Several are seated one after the other on the richest GPUs: what is said to fit does, but an allocator, which tries more
ways, may seat others too. Pipelines over several nodes are not looked at.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product

from maveriq.contracts import Admission, Candidate, Fragment, StageMemory

Free = dict[str, tuple[str, int]]
"""GPU type and free bytes of each GPU of a node."""


def seated_first(
    admission: Admission, num_layers: int, candidates: tuple[Candidate, ...]
) -> tuple[tuple[Candidate, ...], int | None]:
    """Of a dry run those that fit first, and how many; None: the order is as it was, as not all that is free is known.

    What is deployed needs no such order: the allocator passes over what does not fit.
    """
    if not admission.dry_run or not admission.fragments or admission.num_left_out:
        return candidates, None
    return fitting_first(candidates, num_layers, admission.fragments)


def fitting_first(
    candidates: Sequence[Candidate], num_layers: int, fragments: Sequence[Fragment]
) -> tuple[tuple[Candidate, ...], int | None]:
    """In their order otherwise; and how many fit. None: none is known to, but several replicas may after all."""
    nodes: defaultdict[tuple[str, str], Free] = defaultdict(dict)
    for one in fragments:
        nodes[one.engine, one.node][one.gpu] = one.gpu_type, one.free_bytes
    may = False
    for types_of in (_own, _mixed):
        seated = [_num_seated(each, num_layers, types_of(each), nodes) for each in candidates]
        fits = [number == each.replicas for number, each in zip(seated, candidates, strict=True)]
        may |= any(seated)
        if any(fits):
            first = [each for each, does in zip(candidates, fits, strict=True) if does]
            rest = [each for each, does in zip(candidates, fits, strict=True) if not does]
            return (*first, *rest), len(first)
    return tuple(candidates), None if may else 0


def _own(candidate: Candidate) -> frozenset[str]:
    return frozenset(stage.gpu_type for stage in candidate.stages) or frozenset({candidate.configuration.gpu_type})


def _mixed(candidate: Candidate) -> frozenset[str]:
    """None where its replicas cannot be mixed, or are split already."""
    is_free = candidate.configuration.pp > 1 and not candidate.stages
    return frozenset(speed.gpu_type for speed in candidate.mixable if is_free)


def _num_seated(
    candidate: Candidate, num_layers: int, types: frozenset[str], nodes: dict[tuple[str, str], Free]
) -> int:  # fmt: skip
    """Replicas; no two nodes are in each other's way, for none spans them."""
    left = candidate.replicas
    for (engine, _), gpus in nodes.items():
        free = {gpu: seen for gpu, seen in gpus.items() if seen[0] in types}
        while left and engine == candidate.configuration.engine:
            held = _planned(candidate, free) if candidate.stages else _split(candidate, num_layers, free)
            if held is None:
                break
            free |= {gpu: (free[gpu][0], free[gpu][1] - taken) for gpu, taken in held}
            left -= 1
    return candidate.replicas - left


def _planned(candidate: Candidate, free: Free) -> list[tuple[str, int]] | None:
    """The largest stage on the richest GPU, then the next: it fits so if it does at all."""
    held: dict[str, int] = {}
    for stage in sorted(candidate.stages, key=lambda stage: -stage.reserved_bytes):
        able = [
            (num_bytes, gpu)
            for gpu, (gpu_type, num_bytes) in free.items()
            if gpu not in held and gpu_type == stage.gpu_type and num_bytes >= stage.reserved_bytes
        ]
        if not able:
            return None
        held[max(able)[1]] = stage.reserved_bytes
    return list(held.items())


def _split(candidate: Candidate, num_layers: int, free: Free) -> list[tuple[str, int]] | None:
    """On the richest GPUs, whichever come first and last: it fits so if it does at all."""
    memory, pp, tp = candidate.memory, candidate.configuration.pp, candidate.configuration.tp
    stages = sorted(_stages(free, tp), key=lambda gpus: -free[gpus[-1]][1])[:pp]
    if len(stages) < pp:
        return None
    poorest = [free[gpus[-1]][1] for gpus in stages]
    held = _held_bytes(memory, num_layers, poorest)
    if held is None:
        return None
    return [(gpu, taken) for gpus, taken in zip(stages, held, strict=True) for gpu in gpus]


def _stages(free: Free, tp: int) -> Iterable[list[str]]:
    """GPUs of one type, `tp` at a time, richest first."""
    by_type: defaultdict[str, list[str]] = defaultdict(list)
    for gpu in sorted(free, key=lambda gpu: -free[gpu][1]):
        by_type[free[gpu][0]].append(gpu)
    for gpus in by_type.values():
        yield from (gpus[at : at + tp] for at in range(0, len(gpus) - tp + 1, tp))


def _held_bytes(memory: StageMemory, num_layers: int, free: Sequence[int]) -> list[int] | None:
    """Bytes that each stage takes, its layers as even as free bytes let them be. None: they do not fit."""
    stages = range(len(free))

    def room(at: int, first: int, last: int) -> int:
        fixed_bytes = memory.of_stage(0, first=at == first, last=at == last)
        return min((free[at] - fixed_bytes) // memory.layer_bytes, num_layers)

    def lost(at: int, first: int, last: int) -> tuple[bool, int]:
        return room(at, first, last) < 1, room(at, -1, -1) - room(at, first, last)

    firsts = sorted(stages, key=lambda at: lost(at, at, -1))[:2]  # the second, where the best is the other end too
    lasts = sorted(stages, key=lambda at: lost(at, -1, at))[:2]
    ends = [pair for pair in product(firsts, lasts) if pair[0] != pair[1] or len(free) == 1]
    by_ends = {pair: [room(at, *pair) for at in stages] for pair in ends}
    (first, last), rooms = max(by_ends.items(), key=lambda item: (min(item[1]) >= 1, sum(item[1])))
    if min(rooms) < 1 or not len(free) <= num_layers <= sum(rooms):
        return None
    given = [1] * len(rooms)
    for _ in range(num_layers - len(rooms)):
        given[max(stages, key=lambda at: rooms[at] - given[at])] += 1
    return [memory.of_stage(n, first=at == first, last=at == last) for at, n in enumerate(given)]
