"""Why a plan does not fit, and whether it ever could. Pure: a plan and nodes in, a verdict in words and numbers out."""

from collections.abc import Mapping, Sequence

from maveriq.contracts import Candidate, Plan, PlanComputed
from maveriq_allocator.budget import Budget, Clock, budgets
from maveriq_allocator.choosing import Manner, Node, choose, shortage
from maveriq_allocator.parts import FLEET, chosen_with_fleet
from maveriq_allocator.teaching import Lesson, lesson_key
from maveriq_allocator.words import readable

NUM_NAMES_TOLD = 8


def could_ever(
    plan: PlanComputed, emptied: Sequence[Node], num_replicas: int | None, start: int, clock: Clock | None = None
) -> bool:
    """Whether it would fit if nothing of ours were held; also where nobody can tell, because no node that has the
    engine and the GPU types of some candidate has ever reported, or there was no time to look at everything.

    Args:
        emptied: every node known, silent ones too.
    """
    known = {(node.engine, fragment.gpu_type) for node in emptied for fragment in node.fragments}
    for candidate in _from(plan, start):
        if any((candidate.configuration.engine, gpu_type) not in known for gpu_type in Manner().types(candidate)):
            return True
    was_short = False
    for budget in budgets(clock):
        if _fits(plan.plan, emptied, num_replicas, start, budget):
            return True
        was_short = budget.was_short
    return was_short


def _fits(plan: Plan, nodes: Sequence[Node], num_replicas: int | None, start: int, budget: Budget) -> bool:
    """Any candidate; of a fleet alone any part that a replica may be of, or all of it."""
    of_fleet = not plan.candidates
    parts = {part.configuration.gpu_type for part in plan.offered} if of_fleet and num_replicas is not None else {""}
    start = FLEET if of_fleet else start
    found = (chosen_with_fleet(plan, nodes, num_replicas, start, Manner(), part, budget) for part in sorted(parts))
    return any(choice is not None for choice in found)


def why_not(
    plan: PlanComputed, nodes: Sequence[Node], num_replicas: int | None, start: int, *,
    silent: Sequence[str] = (), lessons: Mapping[str, Lesson] | None = None,
) -> str:  # fmt: skip
    """What the leanest candidate from `start` on lacks on `nodes`, which were not asked, and what failures taught.

    Of a plan that is a fleet alone: what its first part lacks that has no room.
    """
    offered = _from(plan, start)
    if plan.plan.candidates:
        candidate = min(offered, key=lambda each: each.replicas * each.prediction.memory_bytes)
    else:
        candidate = next((part for part in offered if not _has_room(plan, part, nodes, num_replicas)), offered[0])
    text = shortage(candidate, plan.plan.facts.num_layers, nodes, num_replicas or candidate.replicas)
    others = len(offered) - 1
    if others and plan.plan.candidates:
        text += f"; the {others} other candidate(s) take more and do not fit either"
    elif others:
        text += "; all parts of the fleet are placed together, for none serves all sizes of requests alone"
    if silent:
        text += f"; nodes that no longer report: {', '.join(silent[:NUM_NAMES_TOLD])}"
    lesson = (lessons or {}).get(lesson_key(plan.admission.model, candidate))
    if lesson is not None:
        text += (
            f"; the estimate of its stages is {readable(lesson.extra_bytes)} higher "
            f"after {len(lesson.tokens)} failure(s) for memory"
        )
    return text


def _from(plan: PlanComputed, start: int) -> Sequence[Candidate]:
    return plan.plan.candidates[start:] or plan.plan.offered


def _has_room(plan: PlanComputed, part: Candidate, nodes: Sequence[Node], num_replicas: int | None) -> bool:
    alone = plan.plan.model_copy(update={"candidates": (part,)})
    return choose(alone, nodes, num_replicas=num_replicas) is not None
