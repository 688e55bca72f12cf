"""A decision that has no time is sound, and says how far from the best it may be."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maveriq.contracts import Candidate, Strategy
from maveriq_allocator.budget import Budget, budgets
from maveriq_allocator.capacity import could_ever
from maveriq_allocator.choosing import Manner, Node, choose
from maveriq_allocator.feasibility import check
from maveriq_allocator.joint import pack_many
from maveriq_allocator.packing import Fragment, Packing, pack
from maveriq_allocator.screening import Shape
from maveriq_allocator.seats import Seat
from maveriq_allocator.strategies import Preference
from tests.unit.allocator.plans import candidate, computed, fragments, late_at_once, memory, node, plan

NUM_LAYERS = 8
gpu = st.tuples(st.integers(0, 90), st.sampled_from(["A6000", "K80"]), st.sampled_from([0.0, 0.3, 1.0]))


def never() -> Callable[[], float]:
    """A clock by which there is no time, and no patience either."""
    return count(0.0, 10.0).__next__


def values(wanted: Candidate, there: Node, manner: Manner) -> tuple[float, int] | None:
    """Latency and cost of the best packing on a node; None: it does not fit."""
    configuration = wanted.configuration
    packing = pack(
        wanted.memory, NUM_LAYERS, pp=configuration.pp, tp=configuration.tp, fragments=there.fragments,
        speeds=manner.speeds, preference=manner.preference,
    )  # fmt: skip
    return (packing.latency_ms or 0.0, packing.cost + of_node(there, manner)) if isinstance(packing, Packing) else None


def value(seat: Seat, there: Node, manner: Manner) -> tuple[float, int]:
    """The same of a seat, by its stages alone."""
    fragments = {f.gpu: f for f in there.fragments}
    taken = [fragments[gpu] for stage in seat.stages for gpu in stage.gpus]
    costs = manner.preference.costs(np.array([f.free_bytes for f in taken]), np.array([f.utilisation for f in taken]))
    speeds = manner.speeds or {}
    latency_ms = sum(stage.num_layers * speeds[fragments[stage.gpus[0]].gpu_type] for stage in seat.stages)
    return latency_ms, int(costs.sum()) + of_node(there, manner)


def of_node(there: Node, manner: Manner) -> int:
    return int(manner.preference.at_least(np.array(sum(f.free_bytes for f in there.fragments))))


def less(there: Node, seat: Seat) -> Node:
    """What is left of a node."""
    held = {gpu: stage.reserved_bytes for stage in seat.stages for gpu in stage.gpus}
    left = tuple(replace(f, free_bytes=f.free_bytes - held.get(f.gpu, 0)) for f in there.fragments)
    return replace(there, fragments=left)


def is_within_gaps(wanted: Candidate, seats: Sequence[Seat], nodes: Sequence[Node], manner: Manner) -> bool:
    """Each seat is sound where those before it are, and no other is better by more than it says."""
    left = {each.name: each for each in nodes}
    for seat in seats:
        there = left[seat.node]
        check(seat.stages, wanted, NUM_LAYERS, there.fragments, types=manner.types(wanted))
        mine = value(seat, there, manner)
        best = min(found for each in left.values() if (found := values(wanted, each, manner)) is not None)
        shares = [(a - b) / a for a, b in zip(mine, best, strict=True) if a != b]
        if shares and shares[0] > seat.gap + 1e-9:
            return False
        left[seat.node] = less(there, seat)
    return True


@settings(max_examples=150, deadline=None)
@given(
    nodes=st.lists(st.lists(gpu, min_size=1, max_size=4), min_size=1, max_size=4),
    pp=st.integers(1, 3), tp=st.integers(1, 2), num_replicas=st.integers(1, 4), slow=st.sampled_from([1.0, 3.0]),
    ends=st.tuples(*[st.integers(0, 9)] * 2), strategy=st.sampled_from(Strategy),
    time=st.sampled_from(["none", "none but patience", "all"]),
)  # fmt: skip
@example(  # a bound that nothing reaches in latency hides what is cheaper and as fast
    nodes=[[(7, "A6000", 0.0), (42, "K80", 0.3), (43, "K80", 0.0)]], pp=1, tp=1, num_replicas=1, slow=3.0, ends=(0, 0),
    strategy=Strategy.PACKING, time="none",
)  # fmt: skip
def test_whatever_time_there_is_a_choice_is_sound_and_no_seat_is_further_from_the_best_than_its_gap(
    nodes: list[list[tuple[int, str, float]]], pp: int, tp: int, num_replicas: int, ends: tuple[int, int],
    strategy: Strategy, slow: float, time: str,
) -> None:  # fmt: skip
    wanted = candidate(pp=pp, tp=tp, stage=memory(layer=5, first=ends[0], last=ends[1], runtime=2))
    there = [
        Node(f"n{at}", "torch", tuple(Fragment(f"{at}/{n}", *facts_of(each)) for n, each in enumerate(row)))
        for at, row in enumerate(nodes)
    ]
    manner = Manner(Preference(strategy), speeds={"A6000": 1.0, "K80": slow})
    choice = choose(
        plan(wanted, num_layers=NUM_LAYERS), there, num_replicas=num_replicas, manner=manner,
        clock={"none": never(), "none but patience": late_at_once(), "all": None}[time],
    )  # fmt: skip
    if choice is not None:
        assert len(choice.seats) == num_replicas
        assert is_within_gaps(wanted, choice.seats, there, manner)
    elif num_replicas == 1:
        assert all(values(wanted, each, manner) is None for each in there)


def facts_of(each: tuple[int, str, float]) -> tuple[str, int, float]:
    free_bytes, gpu_type, share = each
    return gpu_type, free_bytes, share


JOINT = candidate(pp=2, stage=memory(layer=10, first=5, last=5))
"""Two of four layers fit these GPUs, but only where they are decided at once."""
TIGHT = (60, 15, 35)


def test_a_candidate_after_one_that_there_was_no_time_for_proves_nothing() -> None:
    either = plan(JOINT, candidate(stage=memory(layer=5)), num_layers=4)
    for clock, rank, gap in ((None, 0, None), (late_at_once(), 1, 1.0), (never(), 1, 1.0)):
        choice = choose(either, [node("n", *TIGHT)], num_replicas=2, clock=clock)
        assert choice is not None and choice.rank == rank
        assert gap is None or {seat.gap for seat in choice.seats} == {gap}


def test_what_no_other_candidate_replaces_is_looked_for_with_patience() -> None:
    wanted, there = plan(JOINT, num_layers=4), [node("n", *TIGHT)]
    assert choose(wanted, there, num_replicas=2, clock=late_at_once()) is not None
    assert choose(wanted, there, num_replicas=2, clock=never()) is None


def test_what_there_was_no_time_to_look_for_is_not_said_to_fit_never() -> None:
    wanted = computed(JOINT, num_layers=4)
    assert could_ever(wanted, [node("n", *TIGHT)], 2, 0, never())
    assert not could_ever(wanted, [node("n", 60, 15, 14)], 2, 0, never())


def test_a_solver_that_was_cut_short_leaves_something_out() -> None:
    shape = Shape(memory(layer=7, first=5, last=3, runtime=2), 40, 3, 1, 40)
    budget = Budget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maveriq_allocator.budget.JOINT_S", 1e-6)
        patch.setattr("maveriq_allocator.budget.LEAST_S", 1e-6)
        pack_many(shape, fragments(*(150 + 13 * at % 97 for at in range(8))), 9, budget)
    assert budget.was_short


@pytest.mark.parametrize("was_short", [False, True])
def test_a_decision_is_made_once_more_only_where_something_was_left_out(was_short: bool) -> None:
    given: list[Budget] = []
    for budget in budgets(None):
        budget.was_short = was_short
        given.append(budget)
    assert len(given) == 1 + was_short
