"""An intent with one field changed. Pure: intent, field and value in, intent or counteroffer out."""

from collections.abc import Sequence

from maveriq.contracts import Counteroffer, Intent
from maveriq_planner.figures import figure

PERCENTILE = "slo.percentile"
CONCURRENCY = "workload.concurrency"

UNMEASURED = "allow_unmeasured_accuracy"
_AND = " and "

DIGITS = 3  # of an offered figure: people retype it

_WHOLE = ("max_gpus", "replicas")


def offer(intent: Intent, constraint: str, wanted: float, offered: float, words: str = "") -> Counteroffer:
    value: object = offered
    if constraint == UNMEASURED:
        words = words or f"{UNMEASURED}: true"
    if constraint in _WHOLE or constraint.endswith("_tokens") or constraint == CONCURRENCY:
        value = round(offered)
    elif constraint == UNMEASURED:
        value = True
    return Counteroffer(
        constraint=constraint, wanted=wanted, offered=offered, intent=_changed(intent, constraint, value), words=words
    )


def joined(intent: Intent, changes: Sequence[tuple[str, float, float]]) -> Counteroffer:
    """All of them at once: constraint, wanted and offered each."""
    made = [offer(intent, *change) for change in changes]
    for change in changes:
        intent = offer(intent, *change).intent
    return made[0].model_copy(
        update={
            "constraint": _AND.join(one.constraint for one in made), "intent": intent,
            "words": _AND.join(map(_words, made)),
        }
    )  # fmt: skip


def paired(first: Counteroffer, second: Counteroffer) -> Counteroffer:
    """Both; the first's intent has both changes."""
    constraint, words = (
        _AND.join(pair) for pair in ((first.constraint, second.constraint), map(_words, (first, second)))
    )
    return first.model_copy(update={"constraint": constraint, "words": words})


def _words(made: Counteroffer) -> str:
    return made.words or f"{made.constraint} {figure(made.offered)}"


def is_joint(offers: Sequence[Counteroffer]) -> bool:
    """Whether no single change would do."""
    return any(_AND in made.constraint for made in offers)


def without(intent: Intent, constraint: str) -> Intent:
    """As if the constraint had not been asked for."""
    return _changed(intent, constraint, None)


def _changed(intent: Intent, constraint: str, value: object) -> Intent:
    section, _, field = constraint.rpartition(".")
    if not section:
        return intent.model_copy(update={field: value})
    part = intent.slo if section == "slo" else intent.workload
    return intent.model_copy(update={section: part.model_copy(update={field: value})})
