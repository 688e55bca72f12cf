"""What an intent that does not fit is offered instead. Pure: its plan in, counteroffers out.

The planner has split mixed precisions over what was free, one replica each, those below the floor of accuracy too:
where none above it fits, the best of these does.
"""

from math import floor

from maveriq.contracts import Counteroffer, PlanComputed

_ACCURACY = "min_accuracy"
_STEP = 1e-4  # people retype it
_MIXING = "torch"  # makes layers of any model in several precisions by itself


def eased(plan: PlanComputed) -> tuple[Counteroffer, ...]:
    """A lower floor of accuracy, where all that keeps to the intent's is uniform."""
    intent = plan.admission.intent
    if intent.min_accuracy is None or any(candidate.stages for candidate in plan.plan.candidates):
        return ()
    listed = {variant.label for variant in plan.admission.model.variants}
    kept = [
        each.predicted
        for each in plan.plan.rejected
        if each.constraint == _ACCURACY and each.predicted is not None and each.configuration.variant
        and each.configuration.variant not in listed and each.replicas == 1
    ]  # fmt: skip
    offered = round(floor(max(kept, default=0.0) / _STEP) * _STEP, 4)
    if not 0 < offered < intent.min_accuracy:
        return ()
    lower = intent.model_copy(update={_ACCURACY: offered})
    return (Counteroffer(constraint=_ACCURACY, wanted=intent.min_accuracy, offered=offered, intent=lower),)


def in_words(plan: PlanComputed, offers: tuple[Counteroffer, ...]) -> str:
    """Sentences on what would take less."""
    words = "".join(f". Mixed precisions would fit with {each.constraint} {each.offered:g}" for each in offers)
    if not offers and _is_measurable(plan):
        measure = f"maveriq accuracy {plan.admission.model.name} --layers TEXT"
        words = f". Layers in int8 and int4 take less: {measure} says what each loses, and plans mix them from then on"
    longest = plan.plan.offered[0].configuration.context_tokens
    rate = plan.admission.intent.workload.request_rate_per_s
    return f"{words}. Planned are requests of up to {longest} tokens, {rate:g} a second: shorter or fewer take less"


def _is_measurable(plan: PlanComputed) -> bool:
    """Whether its layers were never measured, and an engine that mixes precisions would run it."""
    by_torch = any(each.configuration.engine == _MIXING for each in plan.plan.offered)
    return plan.admission.model.sensitivity is None and plan.admission.intent.precisions is None and by_torch
