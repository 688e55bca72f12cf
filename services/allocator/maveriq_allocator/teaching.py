"""What failures for memory teach. Pure: lessons and a failure in, the next lesson or a raised plan out.

Where an engine failed because its stages did not fit into the bytes reserved, the estimate of all alike candidates
(model, engine, GPU type, TP, precisions, variant, batch, context) was too low by an unknown amount. `runtime_bytes`,
the part of the estimate that is no count of weights or KV cache, is raised by a tenth of the largest stage's bytes, on
top of what was known before: few steps reach any error that occurs (the estimator's are under 10 %), and none wastes
more than a tenth. The raise stays under half of the estimate: more is no estimate's error. A lesson ends after
`KEEP_S`, because what took the memory may have been a foreign process. Of a pipeline that the planner has split each
stage's bytes are raised by as much.
"""

from collections.abc import Mapping

from maveriq.contracts import Candidate, Model, Placement, PlanComputed, Value

KEEP_S = 7 * 24 * 3600
STEP = 0.1
BOUND = 0.5
MAX_TOKENS_KEPT = 32  # of failures learned from; a message comes again soon or never


class Lesson(Value):
    """By how much the estimate of alike candidates is raised."""

    extra_bytes: int
    """On `runtime_bytes`: each stage, each rank."""
    tokens: tuple[str, ...] = ()
    """Placements that failed, so that none teaches twice."""


def lesson_key(model: Model, candidate: Candidate) -> str:
    """Alike candidates have the same."""
    c = candidate.configuration
    variant = model.variant(c.variant, c.precision)
    source = (variant.source if variant else None) or model.source
    types = "+".join(sorted({stage.gpu_type for stage in candidate.stages})) or c.gpu_type
    parts = (source, c.engine, types, c.tp, c.precision, c.kv_precision, c.variant, c.max_batch, c.context_tokens)
    return "|".join(str(part) for part in parts)


def learned(before: Lesson | None, failed: Placement) -> Lesson:
    """The lesson once a placement failed for memory; the same where it was known."""
    known = before or Lesson(extra_bytes=0)
    if failed.token in known.tokens:
        return known
    largest = max(stage.reserved_bytes for stage in failed.stages)
    unraised = max(1, largest - known.extra_bytes)
    extra = min(known.extra_bytes + max(1, int(STEP * largest)), int(BOUND * unraised))
    return Lesson(extra_bytes=max(known.extra_bytes, extra), tokens=(*known.tokens, failed.token)[-MAX_TOKENS_KEPT:])


def taught(plan: PlanComputed, lessons: Mapping[str, Lesson]) -> PlanComputed:
    """The plan with the raised estimates: ranks stay as they are."""
    if not lessons:
        return plan
    candidates = tuple(
        _raised(each, lessons.get(lesson_key(plan.admission.model, each))) for each in plan.plan.candidates
    )
    fleet = plan.plan.fleet
    if fleet is not None:
        parts = tuple(_raised(each, lessons.get(lesson_key(plan.admission.model, each))) for each in fleet.parts)
        fleet = fleet.model_copy(update={"parts": parts})
    return plan.model_copy(update={"plan": plan.plan.model_copy(update={"candidates": candidates, "fleet": fleet})})


def _raised(candidate: Candidate, lesson: Lesson | None) -> Candidate:
    if lesson is None:
        return candidate
    memory = candidate.memory
    raised = memory.model_copy(update={"runtime_bytes": memory.runtime_bytes + lesson.extra_bytes})
    stages = tuple(
        stage.model_copy(update={"reserved_bytes": stage.reserved_bytes + lesson.extra_bytes})
        for stage in candidate.stages
    )
    return candidate.model_copy(update={"memory": raised, "stages": stages})
