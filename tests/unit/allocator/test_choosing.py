"""Which candidate and which nodes a deployment gets."""

from maveriq_allocator.choosing import choose, readable, shortage
from tests.unit.allocator.plans import candidate, memory, node, plan


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


def test_the_node_with_the_smallest_largest_stage_is_taken() -> None:
    choice = choose(plan(candidate(pp=2)), [node("a", 70, 15), node("b", 60, 60)], num_replicas=1)
    assert choice is not None
    assert choice.seats[0].node == "b"


def test_of_equally_fast_nodes_the_one_that_strands_least_is_taken() -> None:
    choice = choose(plan(), [node("a", 200), node("b", 85), node("c", 100)], num_replicas=1)
    assert choice is not None
    assert choice.seats[0].node == "b"


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


def test_a_shortage_tells_what_was_needed_and_the_largest_fragments() -> None:
    stage = memory(layer=2**30, first=2**29, last=2**28, runtime=2**28)
    told = shortage(candidate(pp=2, stage=stage), 32, [node("a", 21 * 2**29, 2**30), node("b", 2**20)], 2)
    assert "2 x 2 GPU(s) A6000" in told
    assert "33.2 GiB free over the stages" in told
    assert "1.8 GiB on the first and 1.5 GiB on the last" in told
    assert "a: 10.5 GiB, 1.0 GiB; b: 1.0 MiB" in told
    assert "no node with engine torch has a H100" in shortage(candidate(gpu_type="H100"), 32, [node("a", 1)], 1)


def test_bytes_are_told_in_the_unit_that_fits() -> None:
    assert [readable(n) for n in (5, 2048, 3 * 2**19, 5 * 2**30)] == ["5 B", "2.0 KiB", "1.5 MiB", "5.0 GiB"]
