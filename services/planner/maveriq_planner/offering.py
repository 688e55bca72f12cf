"""An intent with one field changed. Pure: intent, field and value in, intent or counteroffer out."""

from maveriq.contracts import Counteroffer, Intent

PERCENTILE = "slo.percentile"
CONCURRENCY = "workload.concurrency"

DIGITS = 3  # of an offered figure: people retype it

_WHOLE = ("max_gpus", "replicas")


def offer(intent: Intent, constraint: str, wanted: float, offered: float, words: str = "") -> Counteroffer:
    value: object = offered
    if constraint in _WHOLE or constraint.endswith("_tokens") or constraint == CONCURRENCY:
        value = round(offered)
    elif constraint == "allow_unmeasured_accuracy":
        value = True
    return Counteroffer(
        constraint=constraint, wanted=wanted, offered=offered, intent=_changed(intent, constraint, value), words=words
    )


def without(intent: Intent, constraint: str) -> Intent:
    """As if the constraint had not been asked for."""
    return _changed(intent, constraint, None)


def _changed(intent: Intent, constraint: str, value: object) -> Intent:
    section, _, field = constraint.rpartition(".")
    if not section:
        return intent.model_copy(update={field: value})
    part = intent.slo if section == "slo" else intent.workload
    return intent.model_copy(update={section: part.model_copy(update={field: value})})
