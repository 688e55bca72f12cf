"""Pipelines that the planner has split are seated as they are, wherever they can be, held to brute force."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from maveriq.contracts import Candidate, LayerSpeed, Placement, PlannedStage, Stage, Strategy
from maveriq_allocator.budget import Budget
from maveriq_allocator.capacity import could_ever
from maveriq_allocator.choosing import Manner, Node, choose
from maveriq_allocator.defrag import fewest
from maveriq_allocator.feasibility import violations
from maveriq_allocator.fleet import Fleet
from maveriq_allocator.goals import Emptied
from maveriq_allocator.lifecycle import after_checkpoint
from maveriq_allocator.movable import Movable
from maveriq_allocator.packing import Fragment
from maveriq_allocator.planned import num_planned_seated
from maveriq_allocator.planned_joint import pack_planned
from maveriq_allocator.record import Held, Phase
from maveriq_allocator.shortages import shortage
from maveriq_allocator.strategies import Preference
from maveriq_allocator.teaching import Lesson, lesson_key, taught
from tests.unit.allocator.plans import MODEL, candidate, computed, fragments, node, plan, planned

LAYERS = 8
PIPELINE = planned((30, 3), (50, 4), (10, 1))
TWO_TYPES = planned((30, 4), (20, 4, "L4"))


def ways(stages: Sequence[PlannedStage], gpus: Sequence[Fragment]) -> Iterator[tuple[int, ...]]:
    """Every choice of one GPU a stage."""
    for chosen in permutations(range(len(gpus)), len(stages)):
        pairs = [(stage, gpus[at]) for stage, at in zip(stages, chosen, strict=True)]
        if all(s.gpu_type == g.gpu_type and s.reserved_bytes <= g.free_bytes for s, g in pairs):
            yield chosen


def taking(gpus: Sequence[Fragment], stages: Sequence[PlannedStage], chosen: Sequence[int]) -> list[Fragment]:
    held = {at: stage.reserved_bytes for stage, at in zip(stages, chosen, strict=True)}
    return [replace(f, free_bytes=f.free_bytes - held.get(at, 0)) for at, f in enumerate(gpus)]


def most_by_trying_all(stages: Sequence[PlannedStage], gpus: Sequence[Fragment], limit: int) -> int:
    """Replicas that fit one node side by side, `limit` at most."""
    if limit == 0:
        return 0
    best = 0
    for chosen in ways(stages, gpus):
        best = max(best, 1 + most_by_trying_all(stages, taking(gpus, stages, chosen), limit - 1))
        if best == limit:
            break
    return best


stage_sizes = some.lists(
    some.tuples(some.integers(1, 40), some.just(1), some.sampled_from(("A6000", "L4"))), min_size=1, max_size=3
)
gpu_sizes = some.lists(
    some.tuples(some.integers(0, 60), some.sampled_from(("A6000", "L4")), some.integers(0, 4)), min_size=1, max_size=4
)


def nodes_of(sizes: Sequence[Sequence[tuple[int, str, int]]]) -> list[Node]:
    return [
        Node(
            f"n{number}", "torch",
            tuple(Fragment(f"n{number}/{at}", kind, free, busy / 4) for at, (free, kind, busy) in enumerate(gpus)),
        )
        for number, gpus in enumerate(sizes)
    ]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(sizes=stage_sizes, gpus=some.lists(gpu_sizes, min_size=1, max_size=3), strategy=some.sampled_from(Strategy))
def test_one_replica_is_seated_wherever_it_can_be_and_no_other_choice_costs_less(
    sizes: list[tuple[int, int, str]], gpus: list[list[tuple[int, str, int]]], strategy: Strategy
) -> None:
    wanted, nodes = planned(*sizes), nodes_of(gpus)
    preference = Preference(strategy)

    def cost(chosen: Sequence[Fragment], at: Node) -> int:
        usable = [f for f in at.fragments if f.gpu_type in {s.gpu_type for s in wanted.stages}]
        free = np.array([f.free_bytes for f in chosen], dtype=np.int64)
        on_gpus = preference.costs(free, np.array([f.utilisation for f in chosen])).sum()
        return int(on_gpus + preference.at_least(np.array(sum(f.free_bytes for f in usable))))

    least = min(
        (cost([at.fragments[n] for n in way], at) for at in nodes for way in ways(wanted.stages, at.fragments)),
        default=None,
    )
    choice = choose(plan(wanted, num_layers=len(sizes)), nodes, num_replicas=1, manner=Manner(preference))
    if least is None:
        assert choice is None
        return
    assert choice is not None
    (seat,) = choice.seats
    at = next(each for each in nodes if each.name == seat.node)
    there = {f.gpu: f for f in at.fragments}
    assert seat.gap == 0
    assert cost([there[stage.gpus[0]] for stage in seat.stages], at) == least
    for stage, asked in zip(seat.stages, wanted.stages, strict=True):
        assert (stage.gpu_type, stage.reserved_bytes) == (asked.gpu_type, asked.reserved_bytes)
        assert (stage.precisions, stage.num_layers) == (asked.precisions, asked.num_layers)


@settings(max_examples=150, deadline=None)
@given(
    sizes=stage_sizes,
    gpus=some.lists(gpu_sizes, min_size=1, max_size=2),
    num_replicas=some.integers(2, 3),
    headroom=some.integers(0, 60),
)
def test_several_replicas_are_seated_wherever_they_can_be(
    sizes: list[tuple[int, int, str]], gpus: list[list[tuple[int, str, int]]], num_replicas: int, headroom: int
) -> None:
    wanted, nodes = planned(*sizes), [replace(each, headroom_bytes=headroom) for each in nodes_of(gpus)]
    needed_bytes = sum(stage.reserved_bytes for stage in wanted.stages)
    most = sum(
        most_by_trying_all(wanted.stages, each.fragments, min(num_replicas, each.spare_bytes // needed_bytes))
        for each in nodes
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maveriq_allocator.budget.JOINT_S", 30.0)
        choice = choose(plan(wanted, num_layers=len(sizes)), nodes, num_replicas=num_replicas)
    assert (choice is not None) == (most >= num_replicas)
    held: dict[str, int] = {}
    for stage in (stage for seat in choice.seats for stage in seat.stages) if choice is not None else ():
        held[stage.gpus[0]] = held.get(stage.gpus[0], 0) + stage.reserved_bytes
    assert all(held.get(f.gpu, 0) <= f.free_bytes for each in nodes for f in each.fragments)


def test_replicas_are_decided_at_once_where_one_after_the_other_leaves_too_little() -> None:
    pair = planned((4, 4), (3, 4))
    fleet = Fleet([node("a", 7, 7, 7)], {"A6000"}, Preference())
    assert num_planned_seated(pair, LAYERS, fleet, 3) == 2
    found = pack_planned(pair.stages, fragments(7, 7, 7), 5, Budget())
    assert len(found) == 3
    assert all(len({f.gpu for f in gpus}) == 2 for gpus in found)


def test_stages_keep_their_order_and_precisions_whichever_gpus_they_get() -> None:
    choice = choose(plan(PIPELINE), [node("a", 35, 12, 55)])
    assert choice is not None
    stages = choice.seats[0].stages
    assert [stage.gpus for stage in stages] == [("a/0",), ("a/2",), ("a/1",)]
    assert [stage.precisions for stage in stages] == [stage.precisions for stage in PIPELINE.stages]


def test_two_stages_are_never_on_one_gpu() -> None:
    assert choose(plan(PIPELINE), [node("a", 500, 500)]) is None


def test_a_stage_takes_gpus_of_its_own_type_only() -> None:
    both = Node("a", "torch", (Fragment("a/0", "A6000", 90), Fragment("a/1", "L4", 20)))
    choice = choose(plan(TWO_TYPES), [both])
    assert choice is not None
    assert [stage.gpus[0] for stage in choice.seats[0].stages] == ["a/0", "a/1"]
    assert choose(plan(TWO_TYPES), [node("a", 90, 90)]) is None


def test_they_stay_on_one_node_unless_the_engine_spans_nodes() -> None:
    apart = [node("a", 35), node("b", 55), node("c", 15)]
    assert choose(plan(PIPELINE), apart) is None
    choice = choose(plan(PIPELINE), [replace(each, spans_nodes=True) for each in apart])
    assert choice is not None
    assert [stage.node for stage in choice.seats[0].stages] == ["a", "b", "c"]
    assert choice.seats[0].node == "a"


def test_what_the_planner_has_split_is_not_split_anew_over_types_that_may_be_mixed() -> None:
    mixable = (LayerSpeed(gpu_type="A6000", decode_ms=1), LayerSpeed(gpu_type="L4", decode_ms=2))
    both = Node("a", "torch", (Fragment("a/0", "A6000", 90), Fragment("a/1", "L4", 90), Fragment("a/2", "L4", 90)))
    assert choose(plan(PIPELINE.model_copy(update={"mixable": mixable})), [both]) is None


def test_what_a_node_keeps_free_is_kept() -> None:
    tight = [replace(node("a", 35, 55, 12), headroom_bytes=kept) for kept in (12, 13)]
    assert choose(plan(PIPELINE), tight[:1]) is not None
    assert choose(plan(PIPELINE), tight[1:]) is None
    assert "90 B would fit the GPUs of a, but of the 102 B free on them 13 B stay free" in shortage(
        PIPELINE, LAYERS, tight[1:], 1
    )
    pair = [replace(node("a", 100, 100, 100), headroom_bytes=kept) for kept in (119, 121)]
    assert choose(plan(PIPELINE), pair[:1], num_replicas=2) is not None
    assert choose(plan(PIPELINE), pair[1:], num_replicas=2) is None
    apart = [replace(node(name, 60), spans_nodes=True, headroom_bytes=5) for name in "abc"]
    assert choose(plan(PIPELINE), apart) is not None
    assert choose(plan(PIPELINE), [replace(each, headroom_bytes=11) for each in apart]) is None


def test_it_competes_with_other_candidates_by_its_rank() -> None:
    choice = choose(plan(PIPELINE, candidate()), [node("a", 80), node("b", 50, 30, 10)])
    assert choice is not None
    assert choice.rank == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reserved_bytes": 29}, "29 bytes reserved, 30 needed"),
        ({"precisions": ()}, "other precisions than planned"),
        ({"gpus": ("a/0", "a/1")}, "a planned stage has one GPU"),
        ({"gpus": ("b/0",)}, "b/0 is no A6000"),
        ({"gpus": ("a/9",)}, "a/9 is not on the node"),
        ({"gpus": ("a/2",)}, "30 bytes needed on a/2, 12 free"),
        ({"gpus": ("a/1",)}, "a GPU is taken twice"),
    ],
)
def test_the_check_of_what_is_reserved_knows_planned_stages(change: dict[str, object], told: str) -> None:
    there = (*fragments(35, 55, 12, node="a"), *fragments(90, gpu_type="L4", node="b"))
    choice = choose(plan(PIPELINE), [Node("a", "torch", there[:3])])
    assert choice is not None
    stages = choice.seats[0].stages
    assert list(violations(stages, PIPELINE, LAYERS, there)) == []
    broken = (stages[0].model_copy(update=change), *stages[1:])
    assert any(told in words for words in violations(broken, PIPELINE, LAYERS, there))
    assert "2 stages, 3 planned" in list(violations(stages[:2], PIPELINE, LAYERS, there))


def test_a_failure_for_memory_raises_the_bytes_of_each_stage() -> None:
    lessons = {lesson_key(MODEL, PIPELINE): Lesson(extra_bytes=7)}
    mixed, whole = taught(computed(PIPELINE, candidate()), lessons).plan.candidates
    assert [stage.reserved_bytes for stage in mixed.stages] == [37, 57, 17]
    assert whole == candidate()


def test_a_checkpoint_that_cannot_be_made_is_not_made_again() -> None:
    wanted = computed(PIPELINE, planned((9, 8)), candidate())
    choice = choose(wanted.plan, [node("a", 35, 55, 12)])
    assert choice is not None
    assert after_checkpoint(wanted, _held(PIPELINE), 1) == 2


def _held(of: Candidate) -> Held:
    stage = Stage(gpus=("a/0",), num_layers=8, reserved_bytes=1)
    at = Placement(replica=0, token="t", node="a", model=MODEL, candidate=of, stages=(stage,))
    return Held(placement=at, rank=0, phase=Phase.RESERVED)


def test_what_no_node_could_hold_empty_never_fits_and_what_has_a_type_unheard_of_may() -> None:
    assert not could_ever(computed(PIPELINE), [node("a", 55, 30, 9)], 1, 0)
    assert could_ever(computed(PIPELINE), [node("a", 55, 30, 10)], 1, 0)
    assert could_ever(computed(TWO_TYPES), [node("a", 55, 30, 10)], 1, 0)


@pytest.mark.parametrize(
    ("nodes", "num_replicas", "short"),
    [
        ([], 1, "nodes: no node with engine torch has a A6000, none reports"),
        ([node("a", 90, engine="trtllm")], 1, "nodes: no node runs engine torch, only trtllm"),
        ([node("a", 90, gpu_type="L4")], 1, "GPUs: no node with engine torch has a A6000, only L4"),
        (
            [node("a", 35, 12, 49)],
            1,
            "stages: a comes closest, where 2 of 3 stages find a GPU each; stage 1 needs 50 B",
        ),
        ([node("a", 35, 12, 55)], 2, "memory for all replicas: 1 of 2 found a seat"),
    ],
)
def test_a_person_reads_what_is_short(nodes: list[Node], num_replicas: int, short: str) -> None:
    told = shortage(PIPELINE, LAYERS, nodes, num_replicas)
    assert f"short of {short}" in told
    assert "30 B free on a A6000 for 3 layers, 50 B free on a A6000 for 4 layers" in told


def test_a_replica_that_moves_keeps_its_stages() -> None:
    choice = choose(plan(PIPELINE), [node("a", 30, 50, 10)])
    assert choice is not None
    seat = choice.seats[0]
    movable = Movable(UUID(int=1), 0, "t", PIPELINE, plan().facts, "a", seat.stages)
    free = [node("a", 10, 0, 0), node("b", 60, 33, 11)]
    found = fewest(free, [movable], Emptied("a/1"))
    assert found.moves is not None
    (move,) = found.moves
    assert move.to.node == "b"
    assert [(s.precisions, s.reserved_bytes) for s in move.to.stages] == [
        (s.precisions, s.reserved_bytes) for s in PIPELINE.stages
    ]
