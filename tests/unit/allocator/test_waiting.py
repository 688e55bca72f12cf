"""The line of those that wait: who is due, in which order, and who may keep GPUs from the others."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as some

from maveriq.contracts import Gpu, GpuState, Priority
from maveriq_allocator.capacity import could_ever
from maveriq_allocator.choosing import Node, choose
from maveriq_allocator.waiting import PATIENCE_S, RETOLD_S, Claim, Missing, Waiter, Waiting, has_more, survey
from tests.unit.allocator.plans import candidate, computed, memory, node

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def waiter(
    number: int, size: int, *, waited_s: float = 1, replicas: int = 1, missing: tuple[Missing, ...] = (),
    told: str = "why", max_wait_s: float | None = None, priority: Priority = Priority.NORMAL,
) -> Waiter:  # fmt: skip
    """Wants one GPU for a layer of that size, for each replica."""
    plan = computed(
        candidate(stage=memory(layer=size)), num_layers=1, replicas=replicas, deployment_id=UUID(int=number),
        max_wait_s=max_wait_s, priority=priority,
    )  # fmt: skip
    since = NOW - timedelta(seconds=waited_s)
    waiting = Waiting(since=since, told_at=since, detail="why", num_missing=replicas, missing=missing)
    return Waiter(UUID(int=number), plan, waiting, told, not missing)


def due(line: list[Waiter], free: list[Node], emptied: list[Node] | None = None) -> list[int]:
    return [each.int for each in survey(line, free, emptied or free, NOW).due]


def test_those_that_fit_are_due_in_the_order_of_the_line_and_not_more_than_fit() -> None:
    line = [waiter(1, 50), waiter(2, 60), waiter(3, 40), waiter(4, 20)]
    assert due(line, [node("a", 100)]) == [1, 3]
    assert due(line, [node("a", 100), node("b", 70)]) == [1, 2, 3, 4]


def test_one_that_waited_long_claims_the_gpu_it_can_have_soonest_and_those_behind_get_the_others() -> None:
    line = [waiter(1, 90, waited_s=PATIENCE_S), waiter(2, 60), waiter(3, 20)]
    free, emptied = [node("a", 70), node("b", 30)], [node("a", 100), node("b", 100)]
    found = survey(line, free, emptied, NOW)
    assert found.claim is not None
    assert (found.claim.deployment_id.int, found.claim.gpus) == (1, frozenset({"a/0"}))
    assert [each.int for each in found.due] == [3]
    assert due([waiter(1, 90), *line[1:]], free, emptied) == [2, 3]


def test_only_one_claims_and_a_claim_stands_while_its_gpus_are_there() -> None:
    line = [waiter(1, 90, waited_s=PATIENCE_S), waiter(2, 90, waited_s=PATIENCE_S)]
    emptied = [node("a", 100), node("b", 100)]
    first = survey(line, [node("a", 50), node("b", 40)], emptied, NOW).claim
    assert first is not None and first.gpus == {"a/0"}
    assert survey(line, [node("a", 50), node("b", 60)], emptied, NOW, first).claim == first
    moved = survey(line, [node("b", 60)], [node("b", 100)], NOW, first).claim
    assert moved is not None and moved.gpus == {"b/0"}
    seated = survey(line[1:], [node("a", 50), node("b", 60)], emptied, NOW, first).claim
    assert seated is not None and seated.deployment_id.int == 2


def test_a_claim_binds_those_behind_it_and_nobody_else() -> None:
    claim = Claim(UUID(int=2), (1, NOW), frozenset({"a/0"}))
    assert claim.keeps_from(UUID(int=3), (1, NOW + timedelta(seconds=1))) == {"a/0"}
    assert claim.keeps_from(UUID(int=3), (0, NOW + timedelta(seconds=1))) == frozenset()
    assert claim.keeps_from(UUID(int=1), (1, NOW - timedelta(seconds=1))) == frozenset()
    assert claim.keeps_from(UUID(int=2), (1, NOW)) == frozenset()


def test_whose_time_is_over_and_whose_reason_changed_is_due_to_be_told() -> None:
    full = [node("a", 10)]
    assert due([waiter(1, 50, waited_s=30, max_wait_s=30)], full) == [1]
    assert due([waiter(1, 50, waited_s=29, max_wait_s=30)], full) == []
    assert due([waiter(1, 50, waited_s=RETOLD_S, told="another")], full) == [1]
    assert due([waiter(1, 50, waited_s=RETOLD_S - 1, told="another")], full) == []


def test_the_time_of_one_that_serves_in_part_is_never_over() -> None:
    missing = (Missing(replica=1, rank=0),)
    assert due([waiter(1, 50, waited_s=99, max_wait_s=30, missing=missing)], [node("a", 10)]) == []


def test_one_that_lacks_a_replica_needs_one_seat_and_a_new_one_needs_all() -> None:
    free = [node("a", 50)]
    assert due([waiter(1, 50, replicas=2)], free) == []
    assert due([waiter(1, 50, replicas=2, missing=(Missing(replica=1, rank=0),))], free) == [1]


@given(some.lists(some.integers(1, 100), max_size=8), some.lists(some.integers(0, 100), min_size=1, max_size=3))
def test_all_that_are_due_fit_together(sizes: list[int], free: list[int]) -> None:
    line = [waiter(number, size) for number, size in enumerate(sizes)]
    left = [node(f"n{number}", size) for number, size in enumerate(free)]
    seated = due(line, left)
    for number in seated:
        choice = choose(line[number].plan.plan, left)
        assert choice is not None
        (seat,) = choice.seats
        left = [node(n.name, n.fragments[0].free_bytes - (sizes[number] if n.name == seat.node else 0)) for n in left]
    first = next((number for number, size in enumerate(sizes) if size <= max(free)), None)
    assert first is None or seated[0] == first


def test_what_an_empty_node_holds_could_ever_fit_and_what_no_known_node_could_hold_cannot() -> None:
    small, large = (computed(candidate(stage=memory(layer=size)), num_layers=1) for size in (100, 101))
    assert could_ever(small, [node("a", 100)], None, 0)
    assert not could_ever(large, [node("a", 100)], None, 0)
    assert could_ever(large, [node("a", 500, gpu_type="L4")], None, 0)  # nobody knows what an A6000 has
    assert could_ever(large, [], None, 0)


def test_more_room_is_a_freer_gpu_or_a_new_one() -> None:
    def gpu(name: str, foreign: int) -> GpuState:
        return GpuState(gpu=Gpu(id=name, gpu_type="L4", total_bytes=100, foreign_bytes=foreign))

    assert has_more([gpu("a", 50)], [gpu("a", 40)])
    assert has_more([], [gpu("a", 40)])
    assert not has_more([gpu("a", 50)], [gpu("a", 50)])
    assert not has_more([gpu("a", 50)], [gpu("a", 60)])
