"""What a dry run shows first fits what was free: the allocator, given the same GPUs and the same list, takes it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import Admission, Candidate, Fragment, Intent, LayerSpeed, Model
from maveriq_allocator.choosing import Node, choose
from maveriq_allocator.packing import Fragment as Seat
from maveriq_planner.room import fitting_first, seated_first
from tests.unit.allocator.plans import candidate, memory, plan, planned

NUM_LAYERS = 8
KINDS = ("A6000", "L4")
ends = st.integers(0, 40)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    if draw(st.booleans()) and draw(st.booleans()):
        cut = draw(st.integers(1, NUM_LAYERS - 1))
        stages = [(draw(st.integers(5, 90)), n, draw(st.sampled_from(KINDS))) for n in (cut, NUM_LAYERS - cut)]
        made = planned(*stages)
    else:
        taken = memory(draw(st.integers(3, 20)), draw(ends), draw(ends), 0, draw(st.integers(0, 20)))
        pp, tp = draw(st.integers(1, 6)), draw(st.sampled_from((1, 1, 2)))
        made = candidate(pp, tp, draw(st.sampled_from(KINDS)), stage=taken)
        if draw(st.booleans()):
            speeds = tuple(LayerSpeed(gpu_type=kind, decode_ms=1.0) for kind in KINDS)
            made = made.model_copy(update={"mixable": speeds})
    return made.model_copy(update={"replicas": draw(st.sampled_from((1, 1, 1, 2)))})


nodes = st.lists(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 120)), min_size=1, max_size=5), min_size=1, max_size=3
)


def seen_by_both(drawn: list[list[tuple[str, int]]]) -> tuple[tuple[Fragment, ...], list[Node]]:
    fragments = tuple(
        Fragment(node=f"n{row}", gpu=f"n{row}/{at}", engine="torch", gpu_type=kind, free_bytes=free)
        for row, gpus in enumerate(drawn)
        for at, (kind, free) in enumerate(gpus)
    )
    names = dict.fromkeys(each.node for each in fragments)
    of = {name: tuple(Seat(f.gpu, f.gpu_type, f.free_bytes) for f in fragments if f.node == name) for name in names}
    return fragments, [Node(name, "torch", gpus) for name, gpus in of.items()]


@given(st.lists(candidates(), min_size=1, max_size=6), nodes)
@settings(deadline=None, max_examples=100)
def test_what_comes_first_is_what_the_allocator_seats_and_where_nothing_fits_it_seats_nothing(
    listed: list[Candidate], drawn: list[list[tuple[str, int]]]
) -> None:
    fragments, free = seen_by_both(drawn)
    ordered, num_fitting = fitting_first(listed, NUM_LAYERS, fragments)
    assert sorted(map(id, ordered)) == sorted(map(id, listed))
    choice = choose(plan(*ordered, num_layers=NUM_LAYERS), free)
    if num_fitting == 0:
        assert choice is None
    elif num_fitting is not None:
        assert choice is not None
        assert choice.rank == 0
        if all(each.replicas == 1 for each in listed):
            deployed = choose(plan(*listed, num_layers=NUM_LAYERS), free)
            assert deployed is not None
            assert listed[deployed.rank] is ordered[0]
    else:
        assert any(each.replicas > 1 for each in listed)


SIX, TWO = candidate(6), candidate(2)
FREE = tuple(Fragment(node="n", gpu=f"n/{at}", engine="torch", gpu_type="A6000", free_bytes=50) for at in range(2))


def admission(*, dry_run: bool = True, num_left_out: int = 0, free: tuple[Fragment, ...] = FREE) -> Admission:
    return Admission(
        intent=Intent(model="m"), model=Model(name="m", source="m"), dry_run=dry_run, fragments=free,
        num_left_out=num_left_out,
    )  # fmt: skip


def test_six_stages_do_not_come_first_where_two_gpus_are_free() -> None:
    assert seated_first(admission(), NUM_LAYERS, (SIX, TWO)) == ((TWO, SIX), 1)
    elsewhere = tuple(one.model_copy(update={"engine": "tensorrt_llm"}) for one in FREE)
    assert seated_first(admission(free=elsewhere), NUM_LAYERS, (SIX, TWO)) == ((SIX, TWO), 0)


@pytest.mark.parametrize("why", [{"dry_run": False}, {"num_left_out": 1}, {"free": ()}])
def test_the_order_stays_where_it_is_deployed_or_not_all_that_is_free_is_known(why: dict[str, Any]) -> None:
    known = admission(**why)
    assert seated_first(known, NUM_LAYERS, (SIX, TWO)) == ((SIX, TWO), None)
