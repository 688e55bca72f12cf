"""The moves that make room are the fewest, each fits when it is made, and what cannot be done is said."""

from collections import deque
from itertools import product
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from maveriq.contracts import Stage
from maveriq_allocator.choosing import Node, choose
from maveriq_allocator.defrag import Bounds, Found, fewest
from maveriq_allocator.goals import Emptied, Goal, Seated
from maveriq_allocator.movable import Movable
from maveriq_allocator.packing import Fragment
from tests.unit.allocator.plans import candidate, memory, plan

TYPE = "A6000"


def one(number: int, size: int, gpu: str) -> Movable:
    """A replica of one layer on one GPU."""
    facts = plan(num_layers=1).facts
    stage = Stage(gpus=(gpu,), num_layers=1, reserved_bytes=size)
    held = candidate(stage=memory(layer=size))
    return Movable(UUID(int=number), 0, f"t{number}", held, facts, gpu.split("/")[0], (stage,))


def cluster(sizes: dict[str, int], movable: list[Movable]) -> list[Node]:
    """Free bytes once the replicas hold theirs."""
    free = dict(sizes)
    for each in movable:
        for gpu in each.gpus:
            free[gpu] -= each.stages[0].reserved_bytes
    names = sorted({gpu.split("/")[0] for gpu in sizes})
    return [
        Node(n, "torch", tuple(Fragment(gpu, TYPE, free[gpu]) for gpu in sizes if gpu.startswith(f"{n}/")))
        for n in names
    ]


def seat(size: int) -> Seated:
    return Seated(plan(candidate(stage=memory(layer=size)), num_layers=1))


def replayed(sizes: dict[str, int], movable: list[Movable], found: Found, goal: Goal) -> None:
    """Each move fits beside what is there then, and at the end the goal is met."""
    assert found.moves is not None
    free = {f.gpu: f.free_bytes for node in cluster(sizes, movable) for f in node.fragments}
    for move in found.moves:
        for stage in move.to.stages:
            for gpu in stage.gpus:
                free[gpu] -= stage.reserved_bytes
                assert free[gpu] >= 0
        for stage in move.what.stages:
            for gpu in stage.gpus:
                free[gpu] += stage.reserved_bytes
    moved = {move.what.token for move in found.moves}
    assert len(moved) == len(found.moves)
    nodes = [
        Node(node.name, node.engine, tuple(Fragment(f.gpu, TYPE, free[f.gpu]) for f in node.fragments))
        for node in cluster(sizes, movable)
    ]
    assert goal.is_met(nodes, [m for m in movable if m.token not in moved])


def brute_force(sizes: dict[str, int], movable: list[Movable], target: int | str, most: int) -> int | None:
    """Fewest moves by breadth first over all arrangements; each replica moves once at most."""
    gpus = list(sizes)
    start = (tuple(gpus.index(next(iter(m.gpus))) for m in movable), frozenset[int]())
    need = [m.stages[0].reserved_bytes for m in movable]

    def free(at: tuple[int, ...]) -> list[int]:
        left = [sizes[gpu] for gpu in gpus]
        for place, size in zip(at, need, strict=True):
            left[place] -= size
        return left

    def met(at: tuple[int, ...]) -> bool:
        if isinstance(target, int):
            return max(free(at)) >= target
        return gpus.index(target) not in at

    queue, seen = deque([(start, 0)]), {start}
    while queue:
        ((at, moved), depth) = queue.popleft()
        if met(at):
            return depth
        if depth == most:
            continue
        left = free(at)
        for which, to in product(range(len(movable)), range(len(gpus))):
            if which in moved or to == at[which] or left[to] < need[which]:
                continue
            after = ((*at[:which], to, *at[which + 1 :]), moved | {which})
            if after not in seen:
                seen.add(after)
                queue.append((after, depth + 1))
    return None


@settings(max_examples=120, deadline=None)
@given(some.data())
def test_for_replicas_on_one_gpu_no_smaller_set_of_moves_does(data: some.DataObject) -> None:
    gpus = data.draw(some.sampled_from([["a/0", "b/0"], ["a/0", "a/1", "b/0"], ["a/0", "a/1", "b/0", "b/1"]]))
    sizes = {gpu: data.draw(some.integers(4, 12)) for gpu in gpus}
    movable: list[Movable] = []
    left = dict(sizes)
    for number in range(data.draw(some.integers(0, 4))):
        gpu = data.draw(some.sampled_from(gpus))
        if left[gpu] >= 1:
            size = data.draw(some.integers(1, left[gpu]))
            left[gpu] -= size
            movable.append(one(number + 1, size, gpu))
    target = data.draw(some.one_of(some.integers(1, 12), some.sampled_from(gpus)))
    goal: Goal = seat(target) if isinstance(target, int) else Emptied(target)
    found = fewest(cluster(sizes, movable), movable, goal, Bounds(max_tried=100_000))
    expected = brute_force(sizes, movable, target, 4)
    assert found.is_fewest
    assert (None if found.moves is None else len(found.moves)) == expected
    if found.moves is not None:
        replayed(sizes, movable, found, goal)


def test_however_many_hold_a_gpu_all_of_them_move() -> None:
    sizes = {"a/0": 12, "b/0": 20}
    movable = [one(number, 2, "a/0") for number in range(1, 7)]
    found = fewest(cluster(sizes, movable), movable, Emptied("a/0"))
    assert found.moves is not None and len(found.moves) == 6 and found.is_fewest


def test_a_search_that_is_late_ends_and_proves_nothing() -> None:
    sizes = {"a/0": 10, "b/0": 10}
    movable = [one(1, 5, "a/0"), one(2, 5, "b/0")]
    assert fewest(cluster(sizes, movable), movable, seat(10), Bounds(is_late=lambda: True)) == Found(None, False)


def test_two_halves_become_one_place() -> None:
    sizes = {"a/0": 10, "b/0": 10}
    movable = [one(1, 5, "a/0"), one(2, 5, "b/0")]
    found = fewest(cluster(sizes, movable), movable, seat(10))
    assert found.moves is not None and len(found.moves) == 1 and found.is_fewest


def test_a_move_may_make_room_for_another() -> None:
    """The 6 leaves a only after the 3 has left b."""
    sizes = {"a/0": 10, "b/0": 8, "c/0": 3}
    movable = [one(1, 6, "a/0"), one(2, 3, "b/0")]
    found = fewest(cluster(sizes, movable), movable, Emptied("a/0"))
    assert found.moves is not None
    assert [move.what.token for move in found.moves] == ["t2", "t1"]
    replayed(sizes, movable, found, Emptied("a/0"))


def test_of_sets_of_equal_size_the_one_with_the_fewest_bytes_moves() -> None:
    sizes = {"a/0": 10, "b/0": 10, "c/0": 10}
    movable = [one(1, 6, "a/0"), one(2, 2, "b/0"), one(3, 3, "c/0")]
    found = fewest(cluster(sizes, movable), movable, seat(10))
    assert found.moves is not None
    assert [move.what.token for move in found.moves] == ["t2"]


def test_what_no_moves_reach_is_said_and_what_was_not_tried_is_not_proven() -> None:
    sizes = {"a/0": 10, "b/0": 10}
    movable = [one(1, 6, "a/0"), one(2, 6, "b/0")]
    assert fewest(cluster(sizes, movable), movable, seat(10)) == Found(None, is_fewest=True)
    assert fewest(cluster(sizes, movable), movable, seat(10), Bounds(max_tried=2)) == Found(None, is_fewest=False)


@pytest.mark.parametrize("free", [(6, 6), (4, 8)])
def test_a_replica_of_several_gpus_moves_as_a_whole(free: tuple[int, int]) -> None:
    """Four layers of 3 on two GPUs go to another node, and a whole GPU is free."""
    wanted = candidate(pp=2, stage=memory(layer=2))
    facts = plan(num_layers=4).facts
    stages = tuple(Stage(gpus=(gpu,), num_layers=2, reserved_bytes=4) for gpu in ("a/0", "a/1"))
    movable = [Movable(UUID(int=1), 0, "t1", wanted, facts, "a", stages)]
    nodes = [
        Node("a", "torch", (Fragment("a/0", TYPE, 2), Fragment("a/1", TYPE, 2))),
        Node("b", "torch", tuple(Fragment(f"b/{n}", TYPE, size) for n, size in enumerate(free))),
    ]
    found = fewest(nodes, movable, Emptied("a/0"))
    assert found.moves is not None
    (move,) = found.moves
    assert move.to.node == "b"
    assert sum(stage.num_layers for stage in move.to.stages) == 4
    assert choose(movable[0].plan, [nodes[1]], num_replicas=1) is not None
