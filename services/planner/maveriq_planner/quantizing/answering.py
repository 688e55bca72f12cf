"""Answers `maveriq quantize`, which finds it by its entry point. Pure: a request in, the best pipeline out."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from maveriq.contracts import FULL_PRECISIONS, Precision
from maveriq.contracts.quantizing import (
    LawQuestion,
    QuantizedPipeline,
    QuantizedStage,
    QuantizingRefused,
    QuantizingRequest,
)
from maveriq_planner.quantize import Choice, NothingFits, quantize
from maveriq_planner.quantizing.fields import TablesError
from maveriq_planner.quantizing.fragments import Fragment, Laws, Wish, pipelines_over
from maveriq_planner.quantizing.layer_law import layer_law
from maveriq_planner.quantizing.pipeline import Pipeline, cost
from maveriq_planner.quantizing.tables import pipelines, read_tables
from maveriq_planner.space import by_law


def answer(request: QuantizingRequest) -> QuantizedPipeline:
    """Raises QuantizingRefused."""
    found, labels, group = _by_tables(request) if request.law is None else _by_law(request.law)
    if request.theta is not None:
        found = [replace(p, weights=replace(p.weights, theta=request.theta)) for p in found]
    try:
        choice = quantize(found, most_sensitivity=request.most_sensitivity)
    except NothingFits as error:
        remedy = "give more memory, fewer requests or a smaller precision, or allow more sensitivity"
        field = "tables" if request.law is None else "gpus"
        raise QuantizingRefused(field, str(error), remedy, code="infeasible") from error
    return _told(choice, labels, group)


def _by_tables(request: QuantizingRequest) -> tuple[list[Pipeline], Sequence[str], int]:
    try:
        tables = read_tables(request.tables)
        return pipelines(tables, request.form), tables.precisions, tables.group
    except TablesError as error:
        field, _, problem = str(error).partition(": ")
        raise QuantizingRefused(f"tables.{field}", problem, "mend the file") from error


def _by_law(question: LawQuestion) -> tuple[list[Pipeline], Sequence[str], int]:
    given = question.sensitivity
    if len(given.layers) != question.facts.num_layers:
        problem = f"has {len(given.layers)} rows and {question.model.name} has {question.facts.num_layers} layers"
        raise QuantizingRefused("sensitivity.layers", problem, "measure it on this model")
    laws, silent = _laws(question, given.precisions)
    wish = Wish(
        question.workload, question.num_requests, question.aim, ordered=question.ordered,
        max_stages=question.max_stages, uniform_stages=question.uniform_stages,
    )  # fmt: skip
    fragments = [Fragment(g.name, g.gpu_type, g.free_bytes, g.price_per_hour) for g in question.gpus]
    found = pipelines_over(fragments, laws, given.precisions, np.array(given.layers), wish)
    if not found:
        known = sorted({gpu_type for gpu_type, _ in laws})
        spoken = [reason for reason in silent if any(gpu.gpu_type in reason for gpu in question.gpus)]
        why = "; ".join(spoken) or f"laws speak for {', '.join(known) or 'none'}"
        wanted = [f"--precision {precision}" for precision in given.precisions if precision not in FULL_PRECISIONS]
        remedy = f"{' '.join(('maveriq calibrate', *wanted))} measures their types; or name other GPUs"
        raise QuantizingRefused("gpus", f"no law speaks for them: {why}", remedy, code="not_calibrated")
    return found, [str(precision) for precision in given.precisions], 1


def _laws(question: LawQuestion, precisions: Sequence[Precision]) -> tuple[Laws, Sequence[str]]:
    estimators, silent = by_law(question.model, question.facts, (), question.calibrations)
    laws: Laws = {
        (estimator.kind.gpu_type, estimator.kind.precision): law
        for estimator in estimators
        if estimator.kind.precision in precisions and (law := layer_law(estimator)) is not None
    }
    return laws, silent


def _told(choice: Choice, labels: Sequence[str], group: int) -> QuantizedPipeline:
    own = cost(choice.pipeline, choice.split)
    stages = tuple(
        QuantizedStage(
            gpu=stage.gpu, num_layers=len(held) * group, precisions=tuple(labels[b] for b in held),
            prefill_ms=own.prefill_ms[place], decode_ms=own.decode_ms[place],
            layer_bytes=round(own.bytes[place]), free_bytes=int(stage.capacity_bytes),
        )
        for place, (stage, held) in enumerate(zip(choice.pipeline.stages, choice.split.of_stages(), strict=True))
    )  # fmt: skip
    return QuantizedPipeline(
        stages=stages, prefill_batch=choice.pipeline.prefill_batch, decode_batch=choice.pipeline.decode_batch,
        objective=own.objective, latency_ms=own.latency_ms, sensitivity=own.sensitivity, gap=choice.gap,
        num_pipelines=choice.num_pipelines, num_searched=choice.num_searched,
    )  # fmt: skip
