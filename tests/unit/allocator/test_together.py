"""Several replicas find seats wherever they can, held to brute force on small nodes."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import StageMemory
from maveriq_allocator.budget import Budget
from maveriq_allocator.choosing import choose
from maveriq_allocator.feasibility import check
from maveriq_allocator.joint import pack_many
from maveriq_allocator.screening import Shape
from tests.unit.allocator.plans import candidate, fragments, late_at_once, memory, node, plan


def every_split(num_layers: int, pp: int) -> Iterator[tuple[int, ...]]:
    for cuts in combinations(range(1, num_layers), pp - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, num_layers)))


def every_way(stage: StageMemory, num_layers: int, pp: int, tp: int, free: Sequence[int]) -> set[tuple[int, ...]]:
    """Bytes that one replica can take of each GPU."""
    found: set[tuple[int, ...]] = set()
    for split in every_split(num_layers, pp):
        held = [stage.of_stage(n, first=at == 0, last=at == pp - 1) for at, n in enumerate(split)]
        for gpus in permutations(range(len(free)), pp * tp):
            taken = [0] * len(free)
            for rank, gpu in enumerate(gpus):
                taken[gpu] = held[rank // tp]
            if all(a <= b for a, b in zip(taken, free, strict=True)):
                found.add(tuple(taken))
    return {a for a in found if not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in found)}


def most_by_trying_all(stage: StageMemory, num_layers: int, pp: int, tp: int, free: Sequence[int], limit: int) -> int:
    """Replicas that fit one node side by side, `limit` at most."""
    ways = sorted(every_way(stage, num_layers, pp, tp, free))

    @lru_cache(None)
    def most(left: tuple[int, ...], start: int, wanted: int) -> int:
        best = 0
        for at in range(start, len(ways)):
            rest = tuple(a - b for a, b in zip(left, ways[at], strict=True))
            if best < wanted and min(rest) >= 0:
                best = max(best, 1 + most(rest, at, wanted - 1))
        return best

    return most(tuple(free), 0, limit)


free_bytes = st.lists(st.integers(5, 40), min_size=2, max_size=4)


@settings(max_examples=120, deadline=None)
@given(
    nodes=st.lists(free_bytes, min_size=1, max_size=2),
    shape=st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]),
    num_layers=st.integers(3, 6), num_replicas=st.integers(2, 4), layer=st.integers(2, 5),
    ends=st.tuples(*[st.integers(0, 5)] * 2), runtime=st.integers(0, 3), is_late=st.booleans(),
)  # fmt: skip
def test_all_replicas_find_seats_exactly_where_trying_all_ways_finds_some(
    nodes: list[list[int]], shape: tuple[int, int], num_layers: int, num_replicas: int, layer: int,
    ends: tuple[int, int], runtime: int, is_late: bool,
) -> None:  # fmt: skip
    """Also where there is no time: then with patience."""
    (pp, tp), (first, last) = shape, ends
    stage = memory(layer, first, last, runtime=runtime)
    most = sum(most_by_trying_all(stage, num_layers, pp, tp, free, num_replicas) for free in nodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maveriq_allocator.budget.JOINT_S", 30.0)
        patch.setattr("maveriq_allocator.budget.PATIENT_S", 100.0)
        choice = choose(
            plan(candidate(pp=pp, tp=tp, stage=stage), num_layers=num_layers),
            [node(f"n{at}", *free) for at, free in enumerate(nodes)],
            num_replicas=num_replicas,
            clock=late_at_once() if is_late else None,
        )
    assert (choice is not None) == (most >= num_replicas)
    if choice is not None:
        assert len(choice.seats) == num_replicas
        taken: dict[str, int] = {}
        for seat in choice.seats:
            for each in seat.stages:
                for gpu in each.gpus:
                    taken[gpu] = taken.get(gpu, 0) + each.reserved_bytes
        left = {f"n{at}/{gpu}": free for at, row in enumerate(nodes) for gpu, free in enumerate(row)}
        assert all(num_bytes <= left[gpu] for gpu, num_bytes in taken.items())


def test_replicas_that_greed_would_refuse_find_seats_together() -> None:
    """The first, seated by itself, takes 15 + 15 and leaves the second one GPU."""
    wanted = plan(candidate(tp=2, stage=memory(layer=3, first=4, last=4, runtime=1)), num_layers=2)
    choice = choose(wanted, [node("n", 30, 15, 15)], num_replicas=2)
    assert choice is not None
    assert sorted(seat.stages[0].gpus for seat in choice.seats) == [("n/0", "n/1"), ("n/0", "n/2")]
    assert choice.seats[0].gap > 0


def test_a_nodes_replicas_decided_at_once_are_sound_one_beside_the_other() -> None:
    stage = memory(layer=10, first=7, last=9, runtime=3)
    free = [150, 130, 90, 61]
    replicas = pack_many(Shape(stage, 12, 3, 1, 12), fragments(*free), 9, Budget())
    assert len(replicas) == 2
    left = list(fragments(*free))
    for stages in replicas:
        check(stages, candidate(pp=3, stage=stage), 12, left)
        held = {gpu: each.reserved_bytes for each in stages for gpu in each.gpus}
        left = list(fragments(*(f.free_bytes - held.get(f.gpu, 0) for f in left)))


def test_a_byte_that_a_gpu_lacks_is_not_the_solvers_to_round_away() -> None:
    shape = Shape(memory(layer=2**30), 4, 2, 1, 4)
    assert len(pack_many(shape, fragments(4 * 2**30, 4 * 2**30), 2, Budget())) == 2
    assert len(pack_many(shape, fragments(4 * 2**30, 4 * 2**30 - 1), 2, Budget())) == 1


def test_too_many_ways_are_left_to_greed() -> None:
    assert pack_many(Shape(memory(), 8, 4, 1, 8), fragments(*[90] * 16), 3, Budget()) == []
