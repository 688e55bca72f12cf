"""Whether an intent is admitted. Pure: IntentSubmitted and what is known in, Admission or faults out."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from maveriq.contracts import Admission, Fault, Fragment, IntentSubmitted, Model
from maveriq_ingress.fragments import FEW, carried

MAX_NAMES = 20  # listed in a remedy; more would bury it


def admit(
    submitted: IntentSubmitted, models: Mapping[str, Model], free: Sequence[Fragment] = ()
) -> Admission | tuple[Fault, ...]:
    """The intent with its model resolved, or what is wrong with it.

    What the fields themselves rule out was refused when the message was read; whether the intent can be met
    is the planner's to say, which needs to know what is free where layers can be mixed in precision, GPU types share
    requests by their sizes, or a dry run is to show first what fits; and, of a refusal, what the GPUs there are would
    hold, unless they are so many that each deployment's record would be mostly that.
    """
    model = models.get(submitted.intent.model)
    if model is None:
        return (
            Fault(
                field="intent.model",
                problem=f"no model named {submitted.intent.model!r} is registered",
                remedy=name_another(submitted.intent.model, models),
            ),
        )
    by_size = submitted.intent.workload.histogram is not None
    known = tuple(free)
    is_planned_over = submitted.dry_run or by_size or model.sensitivity is not None
    fragments = carried(known) if is_planned_over or len(known) <= FEW else ()
    return Admission(
        intent=submitted.intent, model=model, dry_run=submitted.dry_run, fragments=fragments,
        num_left_out=len(known) - len(fragments),
    )  # fmt: skip


def name_another(wanted: str, known: Iterable[str]) -> str:
    """The remedy for an unknown model name: the close one, and the known ones."""
    names = list(known)
    if not names:
        return "register it first; no model is registered yet"
    close = get_close_matches(wanted, names, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"register it first, or name one of: {listed(names)}"


def listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - MAX_NAMES
    return ", ".join(ordered[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def taken(submitted: IntentSubmitted, admitted: Admission) -> Fault | None:
    """The fault where `submitted` takes the id that `admitted` has; None where both ask for the same."""
    if submitted.intent == admitted.intent and submitted.dry_run == admitted.dry_run:
        return None
    return Fault(
        field="deployment_id",
        problem=f"{submitted.deployment_id} is already used for another intent",
        remedy="choose a new UUID",
    )
