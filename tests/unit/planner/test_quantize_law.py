"""Pipelines by the law: stages take and hold what the planner's estimators say, fragments are used as they are."""

from dataclasses import replace

import numpy as np
import pytest

from maveriq.contracts import Precision, Workload
from maveriq.contracts.quantizing import Aim
from maveriq_planner.quantize import quantize
from maveriq_planner.quantizing.fragments import (
    Fragment,
    Laws,
    Wish,
    decode_batches,
    orders_of,
    pipelines_over,
    prefill_batches,
)
from maveriq_planner.quantizing.layer_law import layer_law
from maveriq_planner.quantizing.pipeline import Split, cost, faults
from maveriq_planner.space import Space
from tests.unit.planner.measurements import BIG, BIG_MODEL, FACTS, calibration, space_of

GIB = 2**30
PRECISIONS = (Precision.FP16, Precision.INT8, Precision.INT4)
FAST, SLOW = "NVIDIA RTX A6000", "NVIDIA T4"
SPACE = space_of((), (calibration(), calibration(slower=3.0, gpu_type=SLOW)), model=BIG_MODEL, facts=BIG)
WISH = Wish(Workload(input_tokens=256, output_tokens=64), num_requests=8)
SENSITIVITY = np.outer(1.0 + np.arange(BIG.num_layers) / 10, [0.0, 0.01, 0.2])


def laws_of(space: Space) -> Laws:
    found = {(e.kind.gpu_type, e.kind.precision): layer_law(e) for e in space.estimators}
    return {key: law for key, law in found.items() if law is not None}


LAWS = laws_of(SPACE)


@pytest.mark.parametrize(
    ("space", "gpu", "precision"),
    [(SPACE, FAST, Precision.INT8), (SPACE, SLOW, Precision.FP16), (space_of(), "cpu-1t", Precision.INT8)],
)
def test_one_gpu_takes_and_holds_what_the_estimator_says(space: Space, gpu: str, precision: Precision) -> None:
    estimator = next(e for e in space.estimators if (e.kind.gpu_type, e.kind.precision) == (gpu, precision))
    num_layers = space.facts.num_layers
    lossless = np.zeros((num_layers, 1))
    free = 100 * GIB
    found = pipelines_over([Fragment("a", gpu, free)], laws_of(space), [precision], lossless, WISH)
    pipeline = next(p for p in found if (p.prefill_batch, p.decode_batch) == (1, 8))
    own = cost(pipeline, Split((num_layers,), (0,) * num_layers))
    times = estimator.times(1, np.array([1.0]), np.array([8.0]), WISH.workload)
    assert own.decode_ms[0] == pytest.approx(times.step_ms[0, 0])
    assert own.prefill_ms[0] == pytest.approx(times.prefill_ms[0])
    said = estimator.footprint(1, np.array([1.0]), np.array([8.0]), 320)
    held = own.bytes[0] + free - pipeline.stages[0].capacity_bytes
    whole = num_layers * said.layer_bytes[0] + said.first_bytes + said.last_bytes - said.tied_saving_bytes
    assert held == pytest.approx(whole + said.runtime_bytes[0, 0])


def test_the_embedding_is_on_the_first_gpu_the_head_on_the_last_and_the_tied_matrix_once_where_they_meet() -> None:
    laws = laws_of(space_of())
    tied = [Fragment("a", "cpu-1t", GIB), Fragment("b", "cpu-1t", GIB), Fragment("c", "cpu-1t", GIB)]
    sensitivity = np.zeros((FACTS.num_layers, 1))

    def held(fragments: list[Fragment]) -> list[float]:
        wish = replace(WISH, ordered=True)
        pipeline = pipelines_over(fragments, laws, [Precision.FP32], sensitivity, wish)[0]
        return [GIB - stage.capacity_bytes for stage in pipeline.stages]

    first, middle, last = held(tied)
    assert first - middle == 4 * FACTS.embedding_params
    assert last - middle == 4 * FACTS.lm_head_params
    assert held(tied[:1])[0] - middle == 4 * FACTS.lm_head_params  # one matrix: the embedding costs nothing more


def test_layers_are_split_unevenly_and_in_mixed_precisions_over_fragments_of_unequal_gpus() -> None:
    fragments = [Fragment("big", FAST, 9 * GIB), Fragment("small", SLOW, 4 * GIB)]
    found = quantize(pipelines_over(fragments, LAWS, PRECISIONS, SENSITIVITY, replace(WISH, theta=100.0)))
    assert not faults(found.pipeline, found.split)
    assert found.gap <= 1e-4
    assert len(set(found.split.precisions)) > 1
    free = {fragment.name: fragment.free_bytes for fragment in fragments}
    assert all(stage.capacity_bytes < free[stage.gpu] for stage in found.pipeline.stages)


def test_more_accuracy_costs_time_and_no_choice_loses_more_than_is_allowed() -> None:
    fragments = [Fragment("big", FAST, 9 * GIB), Fragment("small", SLOW, 6 * GIB)]
    pipelines = pipelines_over(fragments, LAWS, PRECISIONS, SENSITIVITY, WISH)
    last = 0.0
    for most in (4.0, 1.0, 0.4):
        found = quantize(pipelines, most_sensitivity=most)
        assert found.cost.sensitivity <= most * (1 + 1e-9)
        assert found.cost.latency_ms >= last * (1 - 1e-3)
        last = found.cost.latency_ms


def test_a_price_leaves_dear_gpus_out_and_latency_takes_them() -> None:
    fragments = [Fragment("dear", FAST, 24 * GIB, 10.0), Fragment("cheap", SLOW, 24 * GIB, 0.5)]
    chosen = {
        aim: quantize(pipelines_over(fragments, LAWS, PRECISIONS, SENSITIVITY, replace(WISH, aim=aim)))
        for aim in (Aim.LATENCY, Aim.PRICE)
    }
    assert "dear" in [stage.gpu for stage in chosen[Aim.LATENCY].pipeline.stages]
    assert [stage.gpu for stage in chosen[Aim.PRICE].pipeline.stages] == ["cheap"]


def test_throughput_counts_what_the_busiest_stage_takes_for_a_batch() -> None:
    fragments = [Fragment("a", FAST, 24 * GIB), Fragment("b", FAST, 24 * GIB)]
    found = quantize(pipelines_over(fragments, LAWS, PRECISIONS, SENSITIVITY, replace(WISH, aim=Aim.THROUGHPUT)))
    prompts, groups = 8 / found.pipeline.prefill_batch, 8 / found.pipeline.decode_batch
    step = max(groups * max(found.cost.decode_ms), sum(found.cost.decode_ms))
    assert found.cost.latency_ms == pytest.approx(prompts * max(found.cost.prefill_ms) + 63 * step)


def test_a_type_that_no_law_speaks_for_is_left_out_and_given_orders_need_all() -> None:
    fragments = [Fragment("a", FAST, 24 * GIB), Fragment("x", "unknown", 24 * GIB)]
    found = pipelines_over(fragments, LAWS, PRECISIONS, SENSITIVITY, WISH)
    assert {stage.gpu for p in found for stage in p.stages} == {"a"}
    assert pipelines_over(fragments, LAWS, PRECISIONS, SENSITIVITY, replace(WISH, ordered=True)) == []


def test_orders_leave_out_what_is_the_same_by_symmetry() -> None:
    def orders(*fragments: Fragment) -> list[str]:
        return ["".join(f.name for f in order) for order in orders_of(fragments, WISH)]

    a, b = Fragment("a", FAST, 8.0), Fragment("b", FAST, 8.0)
    small, other = Fragment("s", FAST, 4.0), Fragment("o", SLOW, 8.0)
    assert orders(a, b) == ["a", "ab"]
    assert sorted(orders(a, small)) == ["a", "as", "sa"]
    assert sorted(orders(a, b, other)) == ["a", "ab", "abo", "ao", "o", "oa", "oba"]
    assert {len(order) for order in orders_of((a, b, small, other), replace(WISH, max_stages=2))} == {1, 2}


def test_micro_batches_go_from_one_prompt_to_all_and_from_all_requests_to_a_few_a_stage() -> None:
    assert prefill_batches(replace(WISH, num_requests=12)) == [1, 2, 4, 8, 12]
    assert decode_batches(replace(WISH, num_requests=12), 3) == [2, 4, 6, 12]
