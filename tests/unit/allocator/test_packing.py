"""How a replica's layers fall on a node's fragments."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import Stage, StageMemory, Strategy
from maveriq_allocator.feasibility import Unsound, check, violations
from maveriq_allocator.packing import Fragment, Joined, Packing, Shortfall, pack
from maveriq_allocator.strategies import Preference
from tests.unit.allocator.plans import candidate, fragments, memory

GIB = 2**30


def packed(
    stage: StageMemory, num_layers: int, *free_bytes: int, pp: int, tp: int = 1, most_layers: int | None = None
) -> Packing:
    found = pack(stage, num_layers, pp=pp, tp=tp, fragments=fragments(*free_bytes), most_layers=most_layers)
    assert isinstance(found, Packing), found
    check(found.stages, candidate(pp=pp, tp=tp, stage=stage), num_layers, fragments(*free_bytes))
    return found


def layers(packing: Packing) -> dict[str, int]:
    return {gpu: stage.num_layers for stage in packing.stages for gpu in stage.gpus}


def test_equal_fragments_get_equal_stages() -> None:
    assert layers(packed(memory(layer=10), 8, 100, 100, pp=2)) == {"n/0": 4, "n/1": 4}


def test_a_fragment_half_as_large_gets_half_the_layers_when_both_are_filled() -> None:
    assert layers(packed(memory(layer=10), 9, 60, 30, pp=2)) == {"n/0": 6, "n/1": 3}


def test_stages_are_as_even_as_the_gpus_taken_allow() -> None:
    assert sorted(layers(packed(memory(layer=10), 12, 1000, 30, 50, pp=3)).values()) == [3, 4, 5]
    assert sorted(layers(packed(memory(layer=10), 12, 1000, 20, 30, pp=3)).values()) == [2, 3, 7]


def test_the_ends_sit_where_the_stages_are_most_even() -> None:
    assert sorted(layers(packed(memory(layer=10, last=15), 9, 70, 45, pp=2)).values()) == [4, 5]  # not 6 + 3


def test_a_large_fragment_stays_whole_when_a_smaller_one_does() -> None:
    assert layers(packed(memory(layer=10), 2, 800, 25, 40, pp=1)) == {"n/1": 2}


def test_the_embedding_is_counted_on_the_first_stage_and_the_head_on_the_last() -> None:
    found = packed(memory(layer=10, first=50, last=30, runtime=5), 4, 75, 55, pp=2)
    assert [(s.gpus, s.num_layers, s.reserved_bytes) for s in found.stages] == [(("n/0",), 2, 75), (("n/1",), 2, 55)]


def test_a_tied_head_is_saved_where_one_stage_is_both_ends() -> None:
    tied = memory(layer=10, first=50, last=50, tied=50)
    assert packed(tied, 2, 70, pp=1).stages[0].reserved_bytes == 70
    assert isinstance(pack(tied, 2, pp=2, tp=1, fragments=fragments(59, 59)), Shortfall)


def test_the_ends_go_to_the_fragments_that_can_hold_them() -> None:
    found = packed(memory(layer=10, first=100, last=60), 3, 10, 70, 110, pp=3)
    assert [stage.gpus for stage in found.stages] == [("n/2",), ("n/0",), ("n/1",)]


def test_the_ranks_of_a_stage_are_distinct_and_hold_the_same() -> None:
    found = packed(memory(layer=10), 8, 40, 60, 45, 60, pp=2, tp=2)
    assert [sorted(stage.gpus) for stage in found.stages] in ([["n/0", "n/2"], ["n/1", "n/3"]],
                                                             [["n/1", "n/3"], ["n/0", "n/2"]])  # fmt: skip


@pytest.mark.parametrize(
    ("free_bytes", "num_layers", "pp", "tp"),
    [((19,), 2, 1, 1), ((100,), 2, 2, 1), ((100, 100), 2, 1, 4), ((100, 100, 100), 2, 3, 1), ((50, 9), 4, 2, 1)],
)
def test_what_cannot_fit_is_a_shortfall_with_its_reason(
    free_bytes: tuple[int, ...], num_layers: int, pp: int, tp: int
) -> None:
    found = pack(memory(layer=10), num_layers, pp=pp, tp=tp, fragments=fragments(*free_bytes))
    assert isinstance(found, Shortfall)
    assert found.reason


@pytest.mark.parametrize(
    ("free_gib", "model_gib", "expected"),
    [((40, 48), 80, (5, 5)), ((20, 48), 60, (3, 7))],
    ids=["where round robin by size over-commits the fuller GPU", "where round robin refuses what fits"],
)
def test_unequal_gpus_are_filled_by_what_is_free_not_by_their_size(
    free_gib: tuple[int, int], model_gib: int, expected: tuple[int, int]
) -> None:
    found = packed(memory(layer=model_gib * GIB // 10), 10, *(free * GIB for free in free_gib), pp=2)
    assert (layers(found)["n/0"], layers(found)["n/1"]) == expected


@pytest.mark.parametrize(
    ("free_gib", "expected"), [((16.0, 2.1), (30, 2)), ((14.6, 2.0), (30, 2)), ((8.6, 8.2), (16, 16))]
)
def test_a_head_that_eats_a_small_fragment_moves_layers_to_the_other(
    free_gib: tuple[float, float], expected: tuple[int, int]
) -> None:
    """Measured of a 32-layer model in 16 bits; spreading its head over all layers gives the second GPU 4, 3 and 16."""
    stage = memory(layer=int(0.44 * GIB), first=int(0.95 * GIB), last=int(1.04 * GIB))
    found = packed(stage, 32, *(int(f * GIB) for f in free_gib), pp=2)
    assert (layers(found)["n/0"], layers(found)["n/1"]) == expected


def test_a_stage_that_only_fits_one_layer_gets_one() -> None:
    assert layers(packed(memory(layer=10, first=15, last=15), 32, 400, 26, pp=2)) == {"n/0": 31, "n/1": 1}


def test_large_fragments_stay_whole_unless_the_stages_must_be_more_even() -> None:
    assert sorted(layers(packed(memory(layer=10), 8, 60, 60, 20, pp=2)).values()) == [2, 6]
    assert layers(packed(memory(layer=10), 8, 60, 60, 20, pp=2, most_layers=4)) == {"n/0": 4, "n/1": 4}


def test_sixteen_gpus_are_packed_whatever_the_parallelism() -> None:
    free = [(5 + 37 * number % 75) * GIB + number for number in range(16)]
    for pp in range(1, 17):
        for tp in (1, 2, 4, 8):
            if pp * tp <= 16:
                found = pack(memory(layer=GIB // 2, first=GIB, last=GIB), 24, pp=pp, tp=tp, fragments=fragments(*free))
                assert isinstance(found, Packing)


def test_more_choices_than_can_be_looked_at_still_fit_where_any_does_and_that_is_told() -> None:
    """Utilisation makes poorer GPUs the dearer ones, so that stages could be cut in any way."""
    pool = [Fragment(f"{n}/{at}", "A6000", 130 + at, at / 10, node=str(n)) for n in range(12) for at in range(8)]
    found = pack(memory(layer=10), 126, pp=16, tp=2, fragments=pool, preference=Preference(Strategy.PACKING))
    assert isinstance(found, Packing)
    assert not found.is_exact
    check(found.stages, candidate(pp=16, tp=2, stage=memory(layer=10)), 126, pool, spans_nodes=True)


def test_a_node_of_many_small_devices_is_packed_on_the_richest() -> None:
    found = packed(memory(layer=10), 64, *range(10, 210), pp=4)
    assert {int(gpu.removeprefix("n/")) for gpu in layers(found)} <= set(range(168, 200))


# Against brute force


def every_split(num_layers: int, pp: int) -> Iterator[tuple[int, ...]]:
    for cuts in combinations(range(1, num_layers), pp - 1):
        edges = (0, *cuts, num_layers)
        yield tuple(b - a for a, b in pairwise(edges))


def every_seating(gpus: Sequence[int], pp: int, tp: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    if pp == 0:
        yield ()
        return
    for ranks in combinations(gpus, tp):
        for rest in every_seating([gpu for gpu in gpus if gpu not in ranks], pp - 1, tp):
            yield (ranks, *rest)


Node = Sequence[tuple[int, str, float]]  # free bytes, GPU type, utilisation


def best_by_trying_all(
    stage: StageMemory, num_layers: int, pp: int, tp: int, gpus: Node, speeds: Mapping[str, int], most_layers: int,
    costs: Sequence[int], islands: Sequence[int],
) -> tuple[int, int, int] | None:  # fmt: skip
    """(what joins ranks, latency, cost) of the best of all placements that fit; two islands are below one switch."""
    values: list[tuple[int, int, int]] = []
    for split in every_split(num_layers, pp):
        held = [stage.of_stage(n, first=at == 0, last=at == pp - 1) for at, n in enumerate(split)]
        for seating in every_seating(range(len(gpus)), pp, tp):
            fits = all(gpus[gpu][0] >= held[at] for at, ranks in enumerate(seating) for gpu in ranks)
            if fits and max(split) <= most_layers and all(len({gpus[g][1] for g in ranks}) == 1 for ranks in seating):
                latency = sum(n * speeds[gpus[ranks[0]][1]] for n, ranks in zip(split, seating, strict=True))
                joined = max(
                    (len({islands[gpu] for gpu in ranks}) > 1) + (len({islands[gpu] // 2 for gpu in ranks}) > 1)
                    for ranks in seating
                )
                values.append((joined, latency, sum(costs[gpu] for ranks in seating for gpu in ranks)))
    return min(values, default=None)


small = st.integers(min_value=0, max_value=9)
gpu = st.tuples(
    st.integers(min_value=0, max_value=24), st.sampled_from(["A6000", "K80", "L4"]), st.sampled_from([0.0, 0.3, 1.0])
)


@settings(max_examples=500, deadline=None)
@given(
    gpus=st.lists(gpu, min_size=1, max_size=5),
    num_layers=st.integers(min_value=1, max_value=7),
    shape=st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 3)]),
    layer=st.integers(min_value=1, max_value=4),
    ends=st.tuples(small, small, small, st.integers(min_value=0, max_value=3)),
    speeds=st.fixed_dictionaries({name: st.integers(min_value=1, max_value=3) for name in ("A6000", "K80", "L4")}),
    limited=st.booleans(),
    strategy=st.sampled_from(Strategy),
    islands=st.lists(st.integers(min_value=0, max_value=3), min_size=5, max_size=5),
)
def test_a_packing_is_the_best_of_all_placements_and_missing_only_where_none_fits(
    gpus: list[tuple[int, str, float]], num_layers: int, shape: tuple[int, int], layer: int,
    ends: tuple[int, int, int, int], speeds: dict[str, int], limited: bool, strategy: Strategy, islands: list[int],
) -> None:  # fmt: skip
    (pp, tp), (first, last, tied, runtime) = shape, ends
    stage = memory(layer, first, last, min(first, last, tied), runtime)
    there = [
        Fragment(
            f"n/{at}", gpu_type, free, share,
            linked=frozenset(f"n/{n}" for n in range(5) if islands[n] == islands[at]),
            near=frozenset(f"n/{n}" for n in range(5) if islands[n] // 2 == islands[at] // 2),
        )
        for at, (free, gpu_type, share) in enumerate(gpus)
    ]  # fmt: skip
    most_layers = -(-num_layers // pp) if limited else num_layers
    preference = Preference(strategy)
    costs = preference.costs(np.array([g[0] for g in gpus]), np.array([g[2] for g in gpus])).tolist()
    best = best_by_trying_all(stage, num_layers, pp, tp, gpus, speeds, most_layers, costs, islands)
    found = pack(
        stage, num_layers, pp=pp, tp=tp, fragments=there, speeds=speeds, most_layers=most_layers, preference=preference
    )
    if isinstance(found, Shortfall):
        assert best is None
        return
    assert best is not None
    assert (found.joined, found.latency_ms) == best[:2]
    assert max(s.num_layers for s in found.stages) <= most_layers
    assert found.cost == best[2]
    assert found.is_exact
    check(found.stages, candidate(pp=pp, tp=tp, stage=stage), num_layers, there, types=("A6000", "K80", "L4"))


# Speeds and links


def test_the_fastest_gpu_gets_all_layers_but_one_for_each_other_stage() -> None:
    """MaverIQ halves them: 80 ms."""
    pair = (Fragment("a", "slow", 400), Fragment("b", "fast", 400))
    found = pack(memory(layer=10), 32, pp=2, tp=1, fragments=pair, speeds={"fast": 1.0, "slow": 4.0})
    assert isinstance(found, Packing)
    assert layers(found) == {"b": 31, "a": 1}
    assert found.latency_ms == 35


def test_the_slower_gpus_take_what_the_fastest_cannot_hold() -> None:
    trio = (Fragment("a", "slow", 400), Fragment("b", "fast", 100), Fragment("c", "middle", 100))
    found = pack(memory(layer=10), 25, pp=3, tp=1, fragments=trio, speeds={"fast": 1.0, "middle": 2.0, "slow": 4.0})
    assert isinstance(found, Packing)
    assert layers(found) == {"b": 10, "c": 10, "a": 5}


def linked(*pairs: tuple[int, int], free: Sequence[int]) -> list[Fragment]:
    reach = {at: {b if at == a else a for a, b in pairs if at in (a, b)} for at in range(len(free))}
    return [
        Fragment(f"n/{at}", "A6000", free_bytes, linked=frozenset(f"n/{other}" for other in reach[at]))
        for at, free_bytes in enumerate(free)
    ]


def test_tp_ranks_are_nvlink_neighbours_though_others_would_strand_less() -> None:
    found = pack(memory(layer=10), 3, pp=1, tp=2, fragments=linked((0, 1), (2, 3), free=(30, 90, 50, 31)))
    assert isinstance(found, Packing)
    assert found.stages[0].gpus == ("n/2", "n/3")
    assert found.joined is Joined.NVLINK


def test_tp_ranks_that_no_nvlink_joins_are_taken_where_only_they_fit() -> None:
    found = pack(memory(layer=10), 3, pp=1, tp=2, fragments=linked((0, 1), (2, 3), free=(30, 9, 30, 9)))
    assert isinstance(found, Packing)
    assert found.stages[0].gpus == ("n/0", "n/2")
    assert found.joined is Joined.ANYHOW


def test_a_chain_of_links_is_no_group() -> None:
    found = pack(memory(layer=10), 3, pp=1, tp=3, fragments=linked((0, 1), (1, 2), free=(30, 30, 30)))
    assert isinstance(found, Packing)
    assert found.joined is Joined.ANYHOW


def test_a_gpu_that_is_said_to_reach_itself_is_no_trouble() -> None:
    found = pack(memory(layer=10), 3, pp=1, tp=2, fragments=linked((0, 0), (0, 1), free=(30, 30)))
    assert isinstance(found, Packing)
    assert found.joined is Joined.NVLINK


def test_a_mesh_is_cut_into_groups_that_reach_one_another() -> None:
    """As on DGX-1: two faces of four, and an edge from each corner to the other face."""
    face = [pair for base in (0, 4) for pair in combinations(range(base, base + 4), 2)]
    found = pack(
        memory(layer=10), 3, pp=2, tp=4, fragments=linked(*face, (0, 4), (1, 5), (2, 6), (3, 7), free=[30] * 8)
    )
    assert isinstance(found, Packing)
    assert sorted(s.gpus for s in found.stages) == [
        ("n/0", "n/1", "n/2", "n/3"), ("n/4", "n/5", "n/6", "n/7")
    ]  # fmt: skip
    assert found.joined is Joined.NVLINK


def test_ranks_may_be_one_pair_of_a_chain_of_links() -> None:
    found = pack(memory(layer=10), 3, pp=1, tp=2, fragments=linked((0, 1), (1, 2), free=(30, 30, 30)))
    assert isinstance(found, Packing)
    assert found.joined is Joined.NVLINK


# The check itself


def staged(*stages: tuple[str, int, int]) -> list[Stage]:
    return [Stage(gpus=tuple(gpus.split()), num_layers=n, reserved_bytes=held) for gpus, n, held in stages]


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (staged(("n/0", 8, 80)), "1 stages, not 2"),
        (staged(("n/0", 4, 40), ("n/1", 3, 30)), "7 layers, not 8"),
        (staged(("n/0", 4, 40), ("n/0", 4, 40)), "a GPU is taken twice"),
        (staged(("n/0", 4, 40), ("n/1", 4, 39)), "39 bytes reserved, 40 needed"),
        (staged(("n/0", 4, 40), ("m/0", 4, 40)), "m/0 is not on the node"),
        (staged(("n/0", 2, 20), ("n/1", 6, 60)), "60 bytes needed on n/1, 50 free"),
        (staged(("n/0 n/1", 4, 40), ("n/2", 4, 40)), "2 ranks, not 1"),
        (staged(("n/0", 4, 40), ("old", 4, 40)), "old is no A6000"),
        (staged(("n/0", 4, 40), ("m/1", 4, 40)), "the stages are on several nodes"),
        (staged(("n/0 m/1", 4, 40), ("n/2", 4, 40)), "stage 0: its ranks are on several nodes"),
        (staged(("n/0 old", 4, 40), ("n/2", 4, 40)), "stage 0: its ranks are of several GPU types"),
    ],
)
def test_each_broken_rule_is_told(stages: list[Stage], told: str) -> None:
    there = (*fragments(100, 50, 100), Fragment("old", "K80", 100), Fragment("m/1", "A6000", 100, node="m"))
    assert any(told in violation for violation in violations(stages, candidate(pp=2), 8, there))
    with pytest.raises(Unsound, match=told):
        check(stages, candidate(pp=2), 8, there)
