"""Pipelines of mixed precisions in a plan: predicted by the laws of their layers, split over what is free, judged as
all configurations are."""

from itertools import product
from math import exp
from typing import Any

import numpy as np
import pytest

from maveriq.contracts import (
    Admission,
    Candidate,
    DeploymentFailed,
    FingerprintMeasured,
    Fragment,
    LayerSensitivity,
    Model,
    Objective,
    PlanComputed,
    PlanPreviewed,
    Precision,
    Variant,
)
from maveriq_planner.estimate import Estimator, Kind, Segment
from maveriq_planner.estimators.mixed import Family, MixedPipeline
from maveriq_planner.families import mixing
from maveriq_planner.handlers import Handlers
from maveriq_planner.mixtures import LABEL, mixtures
from maveriq_planner.quantizing.layer_law import layer_law
from maveriq_planner.quantizing.mixed_stages import layers_of
from maveriq_planner.space import Space, by_law
from tests.unit.planner.measurements import (
    BIG,
    BIG_MODEL,
    DEPLOYMENT,
    FACTS,
    MODEL,
    Truth,
    calibration,
    fingerprint,
    intent,
    space_of,
)

MIB, GIB = 2**20, 2**30
FP32, INT8, INT4 = Precision.FP32, Precision.INT8, Precision.INT4
PRINTS = (
    fingerprint(),
    fingerprint(Truth(layer=1.0, prompt=4), precision=INT8, kv_precision=FP32),
    fingerprint(Truth(layer=0.9, prompt=5), precision=INT4, kv_precision=FP32),
)
LOST = tuple((0.0, 0.0005 + 0.0001 * (7 * i % 30), 0.01 + 0.001 * (11 * i % 30)) for i in range(FACTS.num_layers))
SMOL = MODEL.model_copy(
    update={
        "variants": (Variant(precision=FP32, accuracy=1.0),),
        "sensitivity": LayerSensitivity(precisions=(FP32, INT8, INT4), layers=LOST),
    }
)
FAST, SLOW = "NVIDIA RTX A6000", "NVIDIA T4"
CALIBRATIONS = (calibration(), calibration(slower=3.0, gpu_type=SLOW))
BIG_LOST = tuple((0.001 * (1 + i % 5), 0.02 * (1 + i % 3)) for i in range(BIG.num_layers))
BIG_MIXED = BIG_MODEL.model_copy(update={"sensitivity": LayerSensitivity(precisions=(INT8, INT4), layers=BIG_LOST)})


def node(*free_mib: float, name: str = "n0", gpu_type: str = "cpu-1t", engine: str = "torch") -> tuple[Fragment, ...]:
    return tuple(
        Fragment(node=name, gpu=f"{name}/{i}", engine=engine, gpu_type=gpu_type, free_bytes=int(each * MIB))
        for i, each in enumerate(free_mib)
    )


def measured(
    fragments: tuple[Fragment, ...], *, model: Model = SMOL, dry_run: bool = False, **asked: Any
) -> FingerprintMeasured:
    given: dict[str, Any] = {"rate": 0.05, **asked}
    wanted = intent(**given)
    admission = Admission(intent=wanted, model=model, fragments=fragments, dry_run=dry_run)
    return FingerprintMeasured(deployment_id=DEPLOYMENT, facts=FACTS, fingerprints=PRINTS, admission=admission)


async def answered(fragments: tuple[Fragment, ...], **asked: Any) -> PlanComputed | PlanPreviewed | DeploymentFailed:
    return await Handlers(max_pp=8).on_fingerprint_measured(measured(fragments, **asked))


async def planned(fragments: tuple[Fragment, ...], **asked: Any) -> PlanComputed:
    answer = await answered(fragments, **asked)
    assert isinstance(answer, PlanComputed), answer
    return answer


def mixed(answer: PlanComputed) -> list[Candidate]:
    return [each for each in answer.plan.candidates if each.stages]


def lost_by(candidate: Candidate) -> float:
    precisions = [precision for stage in candidate.stages for precision in stage.precisions]
    columns = (FP32, INT8, INT4)
    return sum(LOST[layer][columns.index(precision)] for layer, precision in enumerate(precisions))


def spoken_by(space: Space, gpu_type: str, precision: Precision) -> Estimator:
    return next(e for e in space.estimators if (e.kind.gpu_type, e.kind.precision) == (gpu_type, precision))


SAMPLED = space_of(PRINTS, model=SMOL.model_copy(update={"variants": (
    Variant(precision=FP32, accuracy=1.0), Variant(precision=INT8, kv_precision=FP32),
)}))  # fmt: skip
CALIBRATED = space_of((), CALIBRATIONS, model=BIG_MODEL, facts=BIG)


def pipeline(space: Space, full: Precision, *segments: Segment) -> MixedPipeline:
    laws = {(e.kind.gpu_type, e.kind.precision): layer_law(e) for e in space.estimators}
    known = {place: law for place, law in laws.items() if law is not None}
    first = spoken_by(space, segments[0].gpu_type, full).kind
    family = Family(first.engine, first.variant, first.kv_precision, known)
    kind = Kind(first.engine, first.gpu_type, first.variant, first.kv_precision, segments)
    return MixedPipeline(kind, space.facts, family, 8)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("space", "gpu_type", "precision"), [(SAMPLED, "cpu-1t", FP32), (CALIBRATED, FAST, Precision.FP16)]
)
def test_all_layers_full_and_even_are_predicted_as_the_uniform_law_does(
    space: Space, gpu_type: str, precision: Precision, num_stages: int
) -> None:
    num_layers = space.facts.num_layers
    parts = np.array_split(np.arange(num_layers), num_stages)
    uniform = spoken_by(space, gpu_type, precision)
    one = pipeline(space, precision, *(Segment(gpu_type, (precision,) * len(part)) for part in parts))
    pps, batches, work = np.array([float(num_stages)]), np.array([1.0, 2, 3, 5, 8]), intent().workload
    ours, theirs = one.times(1, pps, batches, work), uniform.times(1, pps, batches, work)
    assert ours.prefill_ms == pytest.approx(theirs.prefill_ms)
    assert ours.prefill_stage_ms == pytest.approx(theirs.prefill_stage_ms)
    assert ours.step_ms == pytest.approx(theirs.step_ms)
    errors, known = one.errors(1, pps, batches, work), uniform.errors(1, pps, batches, work)
    assert errors.prefill == pytest.approx(known.prefill)
    assert errors.step == pytest.approx(known.step)
    held, said = one.footprint(1, pps, batches, 512), uniform.footprint(1, pps, batches, 512)
    for name in ("layer_bytes", "first_bytes", "last_bytes", "runtime_bytes", "runtime_low_bytes"):
        assert getattr(held, name) == pytest.approx(getattr(said, name)), name
    assert held.stage_bytes is not None
    whole = num_layers * said.layer_bytes + num_stages * said.runtime_bytes[0] + said.first_bytes + said.last_bytes
    assert held.stage_bytes.sum(axis=1) == pytest.approx(whole - said.tied_saving_bytes * (num_stages == 1))


def test_an_uneven_mix_over_two_gpu_types_takes_the_sum_of_what_its_layers_take() -> None:
    fp16, pps, work = Precision.FP16, np.array([2.0]), intent().workload
    fast, slow = Segment(FAST, (fp16,) * 12 + (INT8,) * 10), Segment(SLOW, (INT8,) * 4 + (fp16,) * 6)
    one = pipeline(CALIBRATED, fp16, fast, slow)
    law = dict(one.family.laws)
    for batch in (1.0, 4.0):
        parts = {place: each.steps(np.array([batch / min(2, batch)]), work) for place, each in law.items()}
        first = 12 * parts[FAST, fp16].layer + 10 * parts[FAST, INT8].layer
        second = 6 * parts[SLOW, fp16].layer + 4 * parts[SLOW, INT8].layer
        ends = 0.6 * parts[SLOW, fp16].ends + 0.4 * parts[SLOW, INT8].ends
        hop = (12 * parts[FAST, fp16].hop + 10 * parts[FAST, INT8].hop) / 22
        held = {(FAST, fp16): 12, (FAST, INT8): 10, (SLOW, fp16): 6, (SLOW, INT8): 4}
        spared = (32 - 22) * sum(parts[place].spared * count for place, count in held.items()) / 32
        through = first + second + ends + hop - spared
        expected = max(float(through[0]), min(2, batch) * max(float(first[0]), float((second + ends)[0])))
        assert float(one.times(1, pps, np.array([batch]), work).step_ms[0, 0]) == pytest.approx(expected)


def test_a_stage_holds_its_layers_in_their_precisions_the_full_ends_and_the_largest_runtime() -> None:
    segments = (Segment("cpu-1t", (INT8,) * 20), Segment("cpu-1t", (INT8,) * 3 + (FP32,) * 7))
    one = pipeline(SAMPLED, FP32, *segments)
    pps, slots = np.array([2.0]), np.array([4.0])
    of = {p: spoken_by(SAMPLED, "cpu-1t", p).footprint(1, pps, slots, 256) for p in (FP32, INT8)}
    runtime = max(float(each.runtime_bytes[0, 0]) for each in of.values())
    small, large = float(of[INT8].layer_bytes[0]), float(of[FP32].layer_bytes[0])
    stage_bytes = one.footprint(1, pps, slots, 256).stage_bytes
    assert stage_bytes is not None
    assert stage_bytes[0].tolist() == pytest.approx([
        20 * small + runtime + of[FP32].first_bytes, 3 * small + 7 * large + runtime + of[FP32].last_bytes
    ])  # fmt: skip


async def test_fragments_too_small_for_full_precision_get_an_uneven_mixed_pipeline_within_the_floor() -> None:
    fragments = node(300, 240)
    found = mixed(await planned(fragments, min_accuracy=0.97))
    assert found
    for each in found:
        assert (each.configuration.variant, each.configuration.precision) == (LABEL, FP32)
        assert each.configuration.pp == len(each.stages)
        assert sum(stage.num_layers for stage in each.stages) == FACTS.num_layers
        assert each.prediction.accuracy == pytest.approx(exp(-lost_by(each)))
        assert each.prediction.accuracy is not None and each.prediction.accuracy >= 0.97
        assert each.prediction.memory_bytes == pytest.approx(sum(stage.reserved_bytes for stage in each.stages), abs=9)
        taken = sorted((stage.reserved_bytes for stage in each.stages), reverse=True)
        assert all(t <= f.free_bytes for t, f in zip(taken, fragments, strict=False))
        assert not each.mixable
    assert any(len({stage.num_layers for stage in each.stages}) > 1 for each in found)
    assert any(len(set(stage.precisions)) > 1 for each in found for stage in each.stages)


async def test_the_most_accurate_split_is_the_best_of_all_splits() -> None:
    """By brute force, of a model of six layers on two GPUs at one slot."""
    facts = FACTS.model_copy(update={"num_layers": 6})
    rows = ((0.01, 0.3), (0.02, 0.1), (0.005, 0.2), (0.03, 0.25), (0.001, 0.05), (0.015, 0.4))
    model = SMOL.model_copy(update={"sensitivity": LayerSensitivity(precisions=(INT8, INT4), layers=rows)})
    fragments = node(146, 142)
    wanted = intent(rate=0.05, concurrency=1)
    event = measured(fragments, model=model, rate=0.05, concurrency=1).model_copy(update={"facts": facts})
    estimators, silent = by_law(model, facts, PRINTS, ())
    space = mixing(Space(model, facts, estimators, 8, {}, silent), event, 0)
    (family,) = space.families
    columns = {FP32: [0.0] * 6, INT8: [row[0] for row in rows], INT4: [row[1] for row in rows]}
    found = [each for each in mixtures(wanted, space, 384) if len(each.kind.segments) == 2]
    best = min(sum(columns[p][i] for i, p in enumerate(p for s in each.kind.segments for p in s.precisions))
               for each in found)  # fmt: skip
    variant = found[0].kind.variant
    least = float("inf")
    for cut, precisions in product(range(1, 6), product(columns, repeat=6)):
        segments = (Segment("cpu-1t", precisions[:cut]), Segment("cpu-1t", precisions[cut:]))
        one = MixedPipeline(Kind("torch", "cpu-1t", variant, FP32, segments), facts, family, 1)
        lost = sum(columns[p][i] for i, p in enumerate(precisions))
        if lost < least:
            stage_bytes = one.footprint(1, np.array([2.0]), np.array([1.0]), 384).stage_bytes
            assert stage_bytes is not None
            held = sorted(stage_bytes[0].tolist(), reverse=True)
            if all(size <= fragment.free_bytes for size, fragment in zip(held, fragments, strict=True)):
                least = lost
    assert 0 < least < 1
    assert best == pytest.approx(least, rel=0.01)


async def test_without_sensitivity_or_fragments_nothing_is_mixed() -> None:
    plain = SMOL.model_copy(update={"sensitivity": None})
    assert not mixed(await planned(node(300, 240), model=plain))
    assert not mixed(await planned(()))


async def test_where_nothing_free_keeps_the_floor_it_is_planned_over_what_comes_back() -> None:
    room = node(300, 240)
    taken = tuple(f.model_copy(update={"free_bytes": 0, "held_bytes": f.free_bytes}) for f in room)
    partly = tuple(f.model_copy(update={"free_bytes": f.free_bytes // 3, "held_bytes": f.free_bytes * 2 // 3})
                   for f in room)  # fmt: skip
    wanted = mixed(await planned(room, min_accuracy=0.97))
    assert mixed(await planned(taken, min_accuracy=0.97)) == wanted
    assert [each.stages for each in mixed(await planned(partly, min_accuracy=0.97))]
    roomier = tuple(f.model_copy(update={"held_bytes": 100 * MIB}) for f in room)
    assert mixed(await planned(roomier, min_accuracy=0.97)) == wanted


async def test_as_many_slots_as_leave_room_for_the_floor_are_found_between_those_that_are_tried() -> None:
    """8 do not fit."""
    wanted: dict[str, Any] = {
        "min_accuracy": 0.98, "precisions": (FP32, INT8), "input_tokens": 400, "output_tokens": 100,
    }  # fmt: skip
    for free, most in ((450, 1), (500, 2), (600, 4)):
        assert max(each.configuration.max_batch for each in mixed(await planned(node(free), **wanted))) == most


async def test_without_a_floor_the_least_sensitive_that_fits_is_offered_beside_the_fastest() -> None:
    found = mixed(await planned(node(300, 240)))
    accurate = max(found, key=lambda each: each.prediction.accuracy or 0)
    fastest = min(found, key=lambda each: each.prediction.e2e_ms)
    floored = mixed(await planned(node(300, 240), min_accuracy=0.97))
    assert accurate.prediction.accuracy == max(each.prediction.accuracy or 0 for each in floored)
    assert fastest.prediction.e2e_ms < accurate.prediction.e2e_ms


async def test_precisions_of_the_intent_are_those_that_layers_may_have() -> None:
    for allowed in ((INT8,), (INT8, INT4), (FP32, INT8)):
        found = mixed(await planned(node(300, 240), precisions=allowed))
        assert found
        assert {p for each in found for stage in each.stages for p in stage.precisions} <= set(allowed)
    assert not mixed(await planned(node(300, 240), precisions=(FP32,)))


async def test_gpu_types_and_gpus_are_bounds_for_mixed_pipelines_too() -> None:
    assert not mixed(await planned(node(300, 240), max_gpus=1, min_accuracy=0.97))
    assert all(each.configuration.num_gpus == 1 for each in mixed(await planned(node(300, 240), max_gpus=1)))
    assert isinstance(await answered(node(300, 240), gpu_types=("another",)), DeploymentFailed)


async def test_what_a_variant_of_the_model_is_already_is_not_offered_twice() -> None:
    """All layers int8 fits, and is the fastest: a variant of the model where it was measured, else a mix."""
    int8 = Variant(precision=INT8, kv_precision=FP32, accuracy=0.95)
    listed = SMOL.model_copy(update={"variants": (*SMOL.variants, int8)})
    asked: dict[str, Any] = {"objective": Objective.MIN_LATENCY, "precisions": (FP32, INT8)}

    def all_int8(answer: PlanComputed) -> list[Candidate]:
        return [e for e in mixed(answer) if {p for stage in e.stages for p in stage.precisions} == {INT8}]

    assert all_int8(await planned(node(270), **asked))
    assert not all_int8(await planned(node(270), model=listed, **asked))


async def test_least_memory_is_sought_in_bytes() -> None:
    lean = (await planned(node(300, 240), min_accuracy=0.97, objective=Objective.MIN_MEMORY)).plan
    fast = (await planned(node(300, 240), min_accuracy=0.97, objective=Objective.MIN_LATENCY)).plan
    least = min(each.prediction.memory_bytes for each in lean.candidates if each.stages)
    assert lean.candidates[0].stages
    assert lean.candidates[0].prediction.memory_bytes == least
    assert least <= min(each.prediction.memory_bytes for each in fast.candidates if each.stages)


async def test_mixed_pipelines_are_on_the_front_and_leave_room_for_others() -> None:
    plan = (await planned(node(400, 300))).plan
    assert any(each.stages for each in plan.front)
    assert any(not each.stages for each in plan.front)
    assert any(not each.stages for each in plan.candidates)


async def test_a_floor_too_high_is_countered_with_what_a_mix_would_keep() -> None:
    best = max(each.prediction.accuracy or 0 for each in mixed(await planned(node(300, 240))))
    refused = await answered(node(300, 240), min_accuracy=0.995, precisions=(INT8, INT4))
    assert isinstance(refused, DeploymentFailed)
    offered = next(offer for offer in refused.counteroffers if offer.constraint == "min_accuracy")
    assert 0 < offered.offered < best
    taken = await answered(node(300, 240), min_accuracy=offered.offered, precisions=(INT8, INT4))
    assert isinstance(taken, PlanComputed)
    assert all(each.stages for each in taken.plan.candidates)


async def test_a_dry_run_shows_them_too() -> None:
    shown = await answered(node(300, 240), min_accuracy=0.97, dry_run=True)
    assert isinstance(shown, PlanPreviewed)
    assert any(each.stages for each in shown.plan.candidates)


async def test_sensitivity_of_another_number_of_layers_is_told() -> None:
    short = LayerSensitivity(precisions=(INT8,), layers=((0.1,),))
    event = measured(node(300), model=SMOL.model_copy(update={"sensitivity": short}))
    estimators, _ = by_law(SMOL, FACTS, PRINTS, ())
    told = mixing(Space(event.admission.model, FACTS, estimators, 8), event, 256)
    assert not told.families
    assert "is of 1 layers and it has 30" in told.silent[-1]


def test_a_node_of_two_gpu_types_is_one_pipeline_and_the_larger_of_equal_nodes_comes_once() -> None:
    both = (*node(9 * 1024, gpu_type=FAST, engine="trtllm"), *node(6 * 1024, gpu_type=SLOW, engine="trtllm"))
    fragments = tuple(f.model_copy(update={"gpu": f"{name}/{i}", "node": name})
                      for name in ("a", "b") for i, f in enumerate(both))  # fmt: skip
    wanted = intent(input_tokens=256, rate=0.05)
    admission = Admission(intent=wanted, model=BIG_MIXED, fragments=fragments)
    event = FingerprintMeasured(deployment_id=DEPLOYMENT, facts=BIG, calibrations=CALIBRATIONS, admission=admission)
    estimators, silent = by_law(BIG_MIXED, BIG, (), CALIBRATIONS)
    space = mixing(Space(BIG_MIXED, BIG, estimators, 8, {}, silent), event, 320)
    found = mixtures(wanted, space, 640)
    assert {FAST, SLOW} in [set(each.kind.gpu_types) for each in found]
    assert len({each.kind for each in found}) == len(found)
    free = {FAST: 9 * GIB, SLOW: 6 * GIB}
    for each in found:
        held = each.footprint(1, np.array([float(each.max_pp)]), np.array([float(each.max_batch)]), 640).stage_bytes
        assert held is not None
        for segment, num_bytes in zip(each.kind.segments, held[0].tolist(), strict=True):
            assert num_bytes <= free[segment.gpu_type]


def test_layers_of_a_deep_model_are_split_in_groups_of_neighbours() -> None:
    sensitivity = np.arange(160.0).reshape(80, 2)
    grouped = layers_of((INT8, INT4), sensitivity)
    assert grouped.each == 2
    assert grouped.sensitivity.sum(axis=0).tolist() == sensitivity.sum(axis=0).tolist()
    assert layers_of((INT8, INT4), sensitivity[:61]).each == 1
