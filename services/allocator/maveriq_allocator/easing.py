"""What an intent that does not fit is offered instead. Pure: its plan in, counteroffers out.

The planner has split mixed precisions over what was free, those below the floor of accuracy too: where none above it
fits, the best of these does.
"""

from math import floor

from maveriq.contracts import Counteroffer, PlanComputed

_ACCURACY = "min_accuracy"
_STEP = 1e-4  # people retype it


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
        and each.configuration.variant not in listed
    ]  # fmt: skip
    offered = round(floor(max(kept, default=0.0) / _STEP) * _STEP, 4)
    if not 0 < offered < intent.min_accuracy:
        return ()
    lower = intent.model_copy(update={_ACCURACY: offered})
    return (Counteroffer(constraint=_ACCURACY, wanted=intent.min_accuracy, offered=offered, intent=lower),)


def in_words(offers: tuple[Counteroffer, ...]) -> str:
    """A sentence, or nothing."""
    return "".join(f". Mixed precisions fit what was free, with {each.constraint} {each.offered:g}" for each in offers)
