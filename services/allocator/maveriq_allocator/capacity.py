"""Why a plan does not fit, and whether it ever could. Pure: a plan and nodes in, a verdict in words and numbers out."""

from collections.abc import Mapping, Sequence

from maveriq.contracts import PlanComputed
from maveriq_allocator.choosing import Manner, Node, choose, shortage
from maveriq_allocator.teaching import Lesson, lesson_key
from maveriq_allocator.words import readable

NUM_NAMES_TOLD = 8


def could_ever(plan: PlanComputed, emptied: Sequence[Node], num_replicas: int | None, start: int) -> bool:
    """Whether it would fit if nothing of ours were held; also where nobody can tell, because no node that has the
    engine and the GPU types of some candidate has ever reported.

    Args:
        emptied: every node known, silent ones too.
    """
    known = {(node.engine, fragment.gpu_type) for node in emptied for fragment in node.fragments}
    for candidate in plan.plan.candidates[start:]:
        if any((candidate.configuration.engine, gpu_type) not in known for gpu_type in Manner().types(candidate)):
            return True
    return choose(plan.plan, emptied, num_replicas=num_replicas, start=start) is not None


def why_not(
    plan: PlanComputed, nodes: Sequence[Node], num_replicas: int | None, start: int, *,
    silent: Sequence[str] = (), lessons: Mapping[str, Lesson] | None = None,
) -> str:  # fmt: skip
    """What the leanest candidate from `start` on lacks on `nodes`, which were not asked, and what failures taught."""
    candidate = min(plan.plan.candidates[start:], key=lambda each: each.replicas * each.prediction.memory_bytes)
    text = shortage(candidate, plan.plan.facts.num_layers, nodes, num_replicas or candidate.replicas)
    others = len(plan.plan.candidates) - start - 1
    if others:
        text += f"; the {others} other candidate(s) take more and do not fit either"
    if silent:
        text += f"; nodes that no longer report: {', '.join(silent[:NUM_NAMES_TOLD])}"
    lesson = (lessons or {}).get(lesson_key(plan.admission.model, candidate))
    if lesson is not None:
        text += (
            f"; the estimate of its stages is {readable(lesson.extra_bytes)} higher "
            f"after {len(lesson.tokens)} failure(s) for memory"
        )
    return text
