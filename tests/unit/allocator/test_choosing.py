"""Which candidate and which nodes a deployment gets."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import StageMemory, Strategy
from maveriq_allocator.choosing import Choice, Manner, Node, choose
from maveriq_allocator.feasibility import Unsound, check
from maveriq_allocator.packing import Fragment, Packing, pack
from maveriq_allocator.screening import MAX_WAYS
from maveriq_allocator.strategies import Preference
from tests.unit.allocator.plans import candidate, memory, node, plan


def spanning(*nodes: Node) -> list[Node]:
    return [replace(each, spans_nodes=True) for each in nodes]


def test_the_first_candidate_that_fits_wins() -> None:
    wanted = plan(candidate(pp=1), candidate(pp=2), candidate(pp=3))
    choice = choose(wanted, [node("a", 50, 50, 50)], num_replicas=1)
    assert choice is not None
    assert choice.rank == 1
    assert [stage.num_layers for stage in choice.seats[0].stages] == [4, 4]


def test_candidates_before_the_start_are_not_looked_at() -> None:
    wanted = plan(candidate(pp=2), candidate(pp=1), candidate(pp=2))
    choice = choose(wanted, [node("a", 50, 50)], num_replicas=1, start=1)
    assert choice is not None
    assert choice.rank == 2
    assert choose(wanted, [node("a", 50, 50)], num_replicas=1, start=3) is None


def test_a_replica_stays_on_one_node_though_two_together_would_do() -> None:
    assert choose(plan(candidate(pp=2)), [node("a", 50), node("b", 50)], num_replicas=1) is None


def test_tp_ranks_come_from_one_node_though_the_emptiest_gpus_are_on_two() -> None:
    nodes = [node("a", 40, 32), node("b", 39, 33)]
    choice = choose(plan(candidate(tp=2, stage=memory(layer=30)), num_layers=1), nodes, num_replicas=1)
    assert choice is not None
    assert choice.seats[0].stages[0].gpus == ("a/0", "a/1")
    apart = [node("a", 40, 28), node("b", 39, 29)]
    assert choose(plan(candidate(tp=2, stage=memory(layer=30)), num_layers=1), apart, num_replicas=1) is None


def test_only_gpus_of_the_candidates_type_on_nodes_with_its_engine_count() -> None:
    nodes = [node("a", 100, gpu_type="K80"), node("b", 100, engine="trtllm"), node("c", 80)]
    choice = choose(plan(), nodes, num_replicas=1)
    assert choice is not None
    assert [seat.node for seat in choice.seats] == ["c"]
    assert choose(plan(), nodes[:2], num_replicas=1) is None


def test_what_a_node_keeps_free_on_its_gpus_together_is_kept_whichever_are_taken() -> None:
    kept = [replace(node("a", 100, 50), headroom_bytes=size) for size in (70, 71)]
    assert choose(plan(), kept[:1]) is not None
    assert choose(plan(), kept[1:]) is None
    assert choose(plan(candidate(pp=2)), kept[1:]) is None
    assert choose(plan(), [*kept[1:], node("b", 200)], num_replicas=2) is not None
    assert choose(plan(), [*kept[1:], node("b", 159)], num_replicas=2) is None
    other_type = replace(node("a", 100), headroom_bytes=70)
    spare = tuple(replace(f, gpu="a/l4", gpu_type="L4", free_bytes=50) for f in other_type.fragments)
    assert choose(plan(), [replace(other_type, fragments=(*other_type.fragments, *spare))]) is not None
    with pytest.raises(Unsound, match="80 bytes held, 79 may be of the node"):
        (seat,) = choose(plan(), [node("a", 100)]).seats  # type: ignore[union-attr]
        check(seat.stages, candidate(), 8, node("a", 100).fragments, spare_bytes=79)


def test_the_node_that_strands_least_is_taken() -> None:
    choice = choose(plan(), [node("a", 200), node("b", 85), node("c", 100)], num_replicas=1)
    assert choice is not None
    assert choice.seats[0].node == "b"
    assert choice.seats[0].gap == 0


def test_an_end_takes_room_beyond_the_layers_that_its_stage_may_have() -> None:
    """Of 21 bytes a last stage of one layer takes all, though five layers would fit, and two are all there are."""
    wanted = plan(candidate(pp=2, stage=memory(layer=3, last=12, runtime=6)), num_layers=2)
    choice = choose(wanted, [node("a", 21, 13, 72), node("b", 45, 45)])
    assert choice is not None
    assert [stage.gpus for stage in choice.seats[0].stages] == [("a/1",), ("a/0",)]


def test_a_node_whose_ranks_nvlink_joins_is_taken_though_another_strands_less() -> None:
    pair = tuple(
        Fragment(f"l/{at}", "A6000", 200, linked=frozenset({f"l/{1 - at}"})) for at in range(2)
    )  # fmt: skip
    choice = choose(plan(candidate(tp=2)), [node("a", 80, 80), Node("l", "torch", pair), node("z", 80, 80)])
    assert choice is not None
    assert choice.seats[0].node == "l"


def test_ranks_share_a_pcie_switch_where_nvlink_joins_none_though_others_strand_less() -> None:
    near = [
        Fragment(f"s/{at}", "A6000", size, near=frozenset({f"s/{at ^ 1}"})) for at, size in enumerate((80, 90, 99, 80))
    ]
    switched = Node("s", "torch", tuple(near))
    choice = choose(plan(candidate(tp=2)), [node("a", 80, 80), switched])
    assert choice is not None
    assert choice.seats[0].stages[0].gpus == ("s/0", "s/1")
    assert choice.seats[0].gap == 0
    pair = tuple(replace(f, linked=frozenset({f"l/{1 - at}"})) for at, f in enumerate(node("l", 200, 200).fragments))
    choice = choose(plan(candidate(tp=2)), [switched, Node("l", "torch", pair)])
    assert choice is not None
    assert choice.seats[0].node == "l"


def test_where_ways_are_too_many_to_compare_the_gap_says_how_far_the_best_may_be() -> None:
    stage = memory(layer=10, runtime=3)
    nodes = [node(f"n{at}", *((7 * gpu + at) % 50 + 20 for gpu in range(16))) for at in range(40)]
    choice = choose(plan(candidate(pp=8, stage=stage), num_layers=24), nodes)
    assert choice is not None
    assert choice.seats[0].gap >= 0
    assert len({gpu for s in choice.seats[0].stages for gpu in s.gpus}) == 8


def test_a_node_that_is_already_nibbled_at_is_taken_before_an_empty_one() -> None:
    choice = choose(plan(), [node("a", 90, 200, 200, 200), node("b", 95, 60, 60, 60)], num_replicas=1)
    assert choice is not None
    assert choice.seats[0].node == "b"


def test_gpu_types_mix_where_their_speeds_are_told_and_the_fastest_node_wins() -> None:
    slow, fast = node("a", 100, gpu_type="K80").fragments, node("a2", 70, gpu_type="A6000").fragments
    nodes = [node("s", 100, gpu_type="K80"), Node("m", "torch", slow + fast)]
    assert choose(plan(candidate(pp=2)), nodes) is None
    choice = choose(plan(candidate(pp=2)), nodes, manner=Manner(speeds={"A6000": 1.0, "K80": 4.0}))
    assert choice is not None
    assert {s.gpus[0]: s.num_layers for s in choice.seats[0].stages} == {"a2/0": 7, "a/0": 1}
    alone = choose(plan(candidate(pp=1)), nodes, manner=Manner(speeds={"A6000": 1.0, "K80": 4.0}))
    assert alone is not None
    assert alone.seats[0].stages[0].gpus in (("a/0",), ("s/0",))


def test_a_replica_spans_nodes_only_where_its_engine_does_and_no_node_holds_it() -> None:
    nodes = spanning(node("a", 50), node("b", 50), node("c", 10))
    assert choose(plan(candidate(pp=2)), [replace(nodes[0], spans_nodes=False), *nodes[1:]]) is None
    choice = choose(plan(candidate(pp=2)), nodes)
    assert choice is not None
    assert {(s.node, s.gpus[0]) for s in choice.seats[0].stages} == {("a", "a/0"), ("b", "b/0")}
    choice = choose(plan(candidate(pp=2)), [*nodes, node("d", 40, 60)])
    assert choice is not None
    assert choice.seats[0].node == "d"


def test_tp_ranks_stay_on_a_node_where_a_replica_spans_several() -> None:
    nodes = spanning(node("a", 40, 9, 9), node("b", 40, 40), node("c", 41, 40))
    choice = choose(plan(candidate(pp=2, tp=2)), nodes)
    assert choice is not None
    assert {s.gpus for s in choice.seats[0].stages} == {("b/0", "b/1"), ("c/0", "c/1")}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Strategy.LEAST_LOADED, "idle"),
        (Strategy.PACKING, "high"),
        (Strategy.HYBRID, "some"),
        (Strategy.BEST_FIT, "high"),
    ],
)
def test_the_strategy_orders_nodes_by_utilisation(strategy: Strategy, expected: str) -> None:
    shares = {"full": 1.0, "high": 0.8, "some": 0.6, "little": 0.2, "idle": 0.0}
    free = {"full": 90, "high": 85, "some": 100, "little": 100, "idle": 110}
    nodes = [Node(n, "torch", (Fragment(n, "A6000", free[n], share),)) for n, share in shares.items()]
    choice = choose(plan(), nodes, manner=Manner(preference=Preference(strategy)))
    assert choice is not None
    assert choice.seats[0].node == expected


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("share", [0.9, 1.0])
def test_no_strategy_leaves_out_the_only_gpu_with_room(strategy: Strategy, share: float) -> None:
    """MaverIQ's hybrid and packing wait for ever."""
    pair = (Fragment("a", "A6000", 100, share), Fragment("b", "A6000", 10, 0.1))
    choice = choose(plan(), [Node("n", "torch", pair)], manner=Manner(preference=Preference(strategy)))
    assert choice is not None
    assert choice.seats[0].stages[0].gpus == ("a",)


gpu = st.tuples(st.integers(0, 60), st.sampled_from(["A6000", "K80"]), st.sampled_from([0.0, 0.3, 1.0]))


@settings(max_examples=150, deadline=None)
@given(
    nodes=st.lists(st.lists(gpu, min_size=1, max_size=4), min_size=1, max_size=5),
    pp=st.integers(1, 3), tp=st.integers(1, 2), first=st.integers(0, 20), last=st.integers(0, 20),
    ways=st.sampled_from([0, MAX_WAYS]), strategy=st.sampled_from(Strategy), slow=st.sampled_from([1.0, 3.0]),
    num_layers=st.sampled_from([3, 8]),
)  # fmt: skip
def test_the_node_taken_is_the_best_of_all_and_none_is_taken_only_where_none_fits(
    nodes: list[list[tuple[int, str, float]]], pp: int, tp: int, first: int, last: int, ways: int, strategy: Strategy,
    slow: float, num_layers: int,
) -> None:  # fmt: skip
    stage = memory(layer=7, first=first, last=last, runtime=2)
    there = [
        Node(
            f"n{at}",
            "torch",
            tuple(Fragment(f"{at}/{n}", kind, free, share) for n, (free, kind, share) in enumerate(row)),
        )
        for at, row in enumerate(nodes)
    ]
    manner = Manner(preference=Preference(strategy), speeds={"A6000": 1.0, "K80": slow})

    def value(each: Node) -> tuple[float, int] | None:
        packing = pack(
            stage,
            num_layers,
            pp=pp,
            tp=tp,
            fragments=each.fragments,
            speeds=manner.speeds,
            preference=manner.preference,
        )
        if not isinstance(packing, Packing):
            return None
        total = manner.preference.at_least(np.array(sum(f.free_bytes for f in each.fragments)))
        return packing.latency_ms or 0.0, packing.cost + int(total)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maveriq_allocator.screening.MAX_WAYS", ways)  # 0: bounds from the cheapest GPUs
        patch.setattr("maveriq_allocator.seater.MAX_COMPARED_STATES", 2**40)
        choice = choose(plan(candidate(pp=pp, tp=tp, stage=stage), num_layers=num_layers), there, manner=manner)
    values = {each.name: value(each) for each in there}
    fitting = [found for found in values.values() if found is not None]
    assert (choice is None) == (not fitting)
    if choice is not None:
        assert values[choice.seats[0].node] == min(fitting)
        assert choice.seats[0].gap == 0


@settings(max_examples=100, deadline=None)
@given(
    nodes=st.lists(st.lists(gpu, min_size=2, max_size=4), min_size=2, max_size=6),
    pp=st.integers(1, 3), strategy=st.sampled_from(Strategy), slow=st.sampled_from([1.0, 3.0]),
)  # fmt: skip
def test_no_node_is_better_by_more_than_the_gap_where_only_one_is_packed(
    nodes: list[list[tuple[int, str, float]]], pp: int, strategy: Strategy, slow: float
) -> None:
    stage = memory(layer=7, first=6, last=9, runtime=2)
    there = [
        Node(
            f"n{at}",
            "torch",
            tuple(Fragment(f"{at}/{n}", kind, free, share) for n, (free, kind, share) in enumerate(row)),
        )
        for at, row in enumerate(nodes)
    ]
    manner = Manner(preference=Preference(strategy), speeds={"A6000": 1.0, "K80": slow})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maveriq_allocator.seater.MAX_PACKED", 1)
        patch.setattr("maveriq_allocator.screening.MAX_WAYS", 0)
        patch.setattr("maveriq_allocator.screening.MAX_EXACT_WAYS", 0)
        quick = choose(plan(candidate(pp=pp, stage=stage)), there, manner=manner)
        patch.setattr("maveriq_allocator.seater.MAX_PACKED", 8)
        patch.setattr("maveriq_allocator.seater.MAX_COMPARED_STATES", 2**40)
        best = choose(plan(candidate(pp=pp, stage=stage)), there, manner=manner)
    assert (quick is None) == (best is None)
    if quick is not None and best is not None:
        mine, theirs = value_of(quick, there, stage, pp, manner), value_of(best, there, stage, pp, manner)
        assert best.seats[0].gap == 0
        shares = [(a - b) / a for a, b in zip(mine, theirs, strict=True) if a != b]
        assert shares[0] <= quick.seats[0].gap if shares else True


def value_of(choice: Choice, nodes: list[Node], stage: StageMemory, pp: int, manner: Manner) -> tuple[float, int]:
    """Latency and cost of the seat's node, as packed."""
    (node_taken,) = [each for each in nodes if each.name == choice.seats[0].node]
    packing = pack(
        stage, 8, pp=pp, tp=1, fragments=node_taken.fragments, speeds=manner.speeds, preference=manner.preference
    )
    assert isinstance(packing, Packing)
    total = manner.preference.at_least(np.array(sum(f.free_bytes for f in node_taken.fragments)))
    return packing.latency_ms or 0.0, packing.cost + int(total)


def test_replicas_do_not_share_bytes_and_may_sit_on_different_nodes() -> None:
    choice = choose(plan(), [node("a", 170), node("b", 90)], num_replicas=3)
    assert choice is not None
    assert sorted(seat.node for seat in choice.seats) == ["a", "a", "b"]


def test_all_replicas_or_none() -> None:
    assert choose(plan(), [node("a", 170), node("b", 79)], num_replicas=3) is None


def test_a_later_candidate_that_seats_all_replicas_beats_an_earlier_that_seats_some() -> None:
    wanted = plan(candidate(stage=memory(layer=10)), candidate(stage=memory(layer=5)))
    choice = choose(wanted, [node("a", 80)], num_replicas=2)
    assert choice is not None
    assert choice.rank == 1


def test_even_stages_give_way_where_only_tight_ones_seat_every_replica() -> None:
    """Even, the first replica takes 40 of both large GPUs, and 30 + 30 + 20 are left: no second of 80 fits two."""
    nodes = [node("a", 70, 70, 20, 20)]
    choice = choose(plan(candidate(pp=2)), nodes, num_replicas=2)
    assert choice is not None
    assert len(choice.seats) == 2


def test_a_thousand_nodes_are_searched() -> None:
    nodes = [node(f"n{number:04}", *(number % 70 + gpu for gpu in range(8))) for number in range(1000)]
    choice = choose(plan(candidate(pp=8), num_layers=32), nodes, num_replicas=4)
    assert choice is not None
    assert len({seat.node for seat in choice.seats}) >= 1
