"""The choice of layers and precisions: never worse than its gap says, against all splits of small pipelines."""

from dataclasses import replace

import numpy as np
import pytest

from maveriq_planner.quantize import Choice, Effort, NothingFits, quantize
from maveriq_planner.quantizing.assigning import assign
from maveriq_planner.quantizing.counting import count_layers, realised
from maveriq_planner.quantizing.exchange import improve
from maveriq_planner.quantizing.floors import quick_floor
from maveriq_planner.quantizing.patterns import Reach, least_sensitivity, patterns
from maveriq_planner.quantizing.pipeline import Pipeline, Split, Stage, Weights, cost, faults
from tests.unit.planner.pipelines import drawn, optimum, splits

SEEDS = range(14)
COUNTING = Effort(max_patterns=0)  # nothing can be listed: HiGHS decides
TOLERANCE = 1e-4


def chosen(pipelines: list[Pipeline], **asked: object) -> Choice | None:
    try:
        return quantize(pipelines, **asked)  # type: ignore[arg-type]
    except NothingFits:
        return None


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_choice_is_the_best_of_all_splits_within_its_gap(seed: int, num_stages: int) -> None:
    pipeline = drawn(seed, num_stages)
    best, found = optimum(pipeline), chosen([pipeline])
    assert (best is None) == (found is None)
    if best is not None and found is not None:
        assert not faults(pipeline, found.split)
        assert found.bound <= best * (1 + 1e-9) and best <= found.cost.objective * (1 + 1e-9)
        assert found.cost.objective <= best * (1 + 2 * TOLERANCE) or pipeline.weights.groups == 2


@pytest.mark.parametrize("seed", range(8))
def test_over_several_pipelines_it_is_the_best_of_all_of_them(seed: int) -> None:
    first = drawn(seed, 2)
    pipelines = [first, replace(first, stages=first.stages[::-1]), replace(first, stages=first.stages[:1]),
                 replace(first, weights=replace(first.weights, scale=0.9 * first.weights.scale))]  # fmt: skip
    known = [best for best in map(optimum, pipelines) if best is not None]
    found = chosen(pipelines)
    assert bool(known) == (found is not None)
    if found is not None:
        assert found.bound <= min(known) * (1 + 1e-9)
        assert found.cost.objective <= min(known) * (1 + found.gap + 1e-9) / (1 - found.gap)


@pytest.mark.parametrize("effort", [Effort(), COUNTING])
@pytest.mark.parametrize("num_stages", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_under_a_floor_of_accuracy_it_keeps_to_it_and_its_bound_holds(
    seed: int, num_stages: int, effort: Effort
) -> None:
    pipeline = drawn(seed, num_stages)
    lost = sorted(cost(pipeline, split).sensitivity for split in splits(pipeline))
    for most in (lost[len(lost) // 10], lost[len(lost) // 3]) if lost else ():
        best, found = optimum(pipeline, most), chosen([pipeline], most_sensitivity=most, effort=effort)
        assert best is not None
        if found is None:
            assert effort is COUNTING, "the exact search finds what keeps to the floor"
            continue
        assert found.cost.sensitivity <= most * (1 + 1e-9) and not faults(pipeline, found.split)
        assert found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_counts_are_a_bound_and_what_they_are_realised_as_can_be_run(seed: int) -> None:
    pipeline = drawn(seed, 3)
    best = optimum(pipeline)
    counted = count_layers(pipeline, 1e-6, 10.0)
    if best is None:
        assert counted.bound == np.inf
        return
    assert counted.counts is not None and counted.bound * pipeline.weights.scale <= best * (1 + 1e-6)
    split = realised(pipeline, counted.counts)
    assert not faults(pipeline, split)
    better = improve(pipeline, split)
    assert not faults(pipeline, better)
    assert best * (1 - 1e-9) <= cost(pipeline, better).objective <= cost(pipeline, split).objective


def test_where_patterns_cannot_be_listed_counts_decide_and_the_gap_is_told() -> None:
    for seed in range(6):
        pipeline = drawn(seed, 2)
        best, found = optimum(pipeline), chosen([pipeline], effort=COUNTING)
        if best is not None and found is not None:
            assert found.bound <= best * (1 + 1e-6)
            assert found.cost.objective * (1 - found.gap) == pytest.approx(found.bound)


def test_what_does_not_fit_is_told_from_what_loses_too_much() -> None:
    sensitivity = np.array([[0.0, 1.0]] * 3)
    pipeline = Pipeline((Stage("gpu", 7.0, (4.0, 2.0), (1.0, 1.0), (1.0, 1.0)),), Weights(0, 0), sensitivity, 1, 1)
    with pytest.raises(NothingFits, match=r"loses at least 3 by quantisation, and at most 2\.5 is allowed"):
        quantize([pipeline], most_sensitivity=2.5)
    small = replace(pipeline, stages=(replace(pipeline.stages[0], capacity_bytes=5.9),))
    with pytest.raises(NothingFits, match="the layers do not fit"):
        quantize([small], most_sensitivity=2.5)
    with pytest.raises(NothingFits, match="no pipeline"):
        quantize([])


def test_a_stage_takes_no_more_than_it_has_to_the_last_byte() -> None:
    sensitivity = np.array([[0.0, 1.0]] * 4)
    stage = Stage("gpu", 8.0, (4.0, 2.0), (1.0, 1.0), (1.0, 1.0))
    found = quantize([Pipeline((stage, stage), Weights(0, 0, theta=1.0), sensitivity, 1, 1)])
    assert found.split == Split((2, 2), (0, 0, 0, 0))
    less = replace(stage, capacity_bytes=7.999)
    found = quantize([Pipeline((stage, less), Weights(0, 0, theta=1.0), sensitivity, 1, 1)])
    assert found.cost.sensitivity == 1.0 and not faults(found.pipeline, found.split)


def test_a_split_is_checked_without_the_search() -> None:
    sensitivity = np.zeros((3, 2))
    stage = Stage("gpu", 10.0, (5.0, 3.0), (1.0, float("inf")), (1.0, 1.0))
    pipeline = Pipeline((stage, stage), Weights(0, 0), sensitivity, 1, 1, uniform_stages=True)
    assert faults(pipeline, Split((2, 1), (0, 0, 0))) == []
    assert faults(pipeline, Split((3,), (0, 0, 0))) == ["1 stages on 2 GPUs"]
    assert faults(pipeline, Split((2, 2), (0, 0, 0))) == ["4 layers in stages and 3 with a precision, of 3"]
    assert faults(pipeline, Split((3, 0), (0, 0, 0))) == [
        "gpu holds 15 bytes of layers and has 10 for them", "gpu holds no layer",
    ]  # fmt: skip
    assert faults(pipeline, Split((2, 1), (0, 1, 0))) == [
        "gpu cannot run one of its precisions", "gpu holds layers of 2 precisions",
    ]  # fmt: skip


def test_a_token_of_all_takes_the_busiest_stage_for_its_groups_and_never_less_than_the_way_through() -> None:
    fast, slow = (Stage("gpu", 9.0, (1.0,), (2.0,), (ms,)) for ms in (1.0, 5.0))
    weights = Weights(prefill_longest=3, decode_longest=0, steps=10, groups=1)
    pipeline = Pipeline((fast, slow), weights, np.zeros((2, 1)), 1, 1)
    split = Split((1, 1), (0, 0))
    assert cost(pipeline, split).latency_ms == (2 + 2) + 3 * 2 + (1 + 5) + 10 * (1 + 5)
    twice = replace(pipeline, weights=replace(weights, groups=2))
    assert cost(twice, split).latency_ms == (2 + 2) + 3 * 2 + (1 + 5) + 10 * (2 * 5)


def test_patterns_are_all_that_fit_and_their_table_is_the_assignment() -> None:
    layer_bytes, total = np.array([5.0, 3.0, 2.0]), 6
    sensitivity = np.random.default_rng(1).random((total, 3))
    found = patterns(layer_bytes, 17.0, total, 10_000)
    assert found is not None
    every = {n for n in np.ndindex(7, 7, 7) if sum(n) <= total and np.dot(n, layer_bytes) <= 17}
    assert {tuple(int(each) for each in column) for column in found.counts.T} == every and len(found) == len(every)
    needed = np.arange(len(found))
    middle = least_sensitivity(found, needed, sensitivity, Reach.MIDDLE)
    last = least_sensitivity(found, needed, sensitivity, Reach.LAST)
    for k in needed[1:]:
        size = int(found.num_layers[k])
        for start in range(total):
            if start + size > total:
                assert middle[k, start] == np.inf
            else:
                lost, _ = assign(sensitivity[start : start + size], found.counts[:, k])
                assert middle[k, start] == pytest.approx(lost)
        lost, _ = assign(sensitivity[total - size :], found.counts[:, k])
        assert last[k, 0] == pytest.approx(lost)
    assert patterns(layer_bytes, 17.0, total, 10) is None


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_no_split_costs_less_than_the_quick_floor(seed: int, num_stages: int) -> None:
    pipeline = drawn(seed, num_stages)
    best = optimum(pipeline)
    if best is not None:
        assert quick_floor(pipeline) * pipeline.weights.scale <= best * (1 + 1e-9)
