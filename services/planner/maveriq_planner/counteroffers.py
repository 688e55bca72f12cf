"""The nearest intents that would be met, one constraint relaxed each. Pure: a refused intent in, counteroffers out."""

from collections.abc import Iterable, Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from math import floor

from maveriq.contracts import DAY_MS, Configuration, Counteroffer, Intent, ModelFacts, Workload
from maveriq_planner.constraints import ACCURACY, E2E, GPUS, RATE, TPOT, TTFT
from maveriq_planner.estimate import Estimator
from maveriq_planner.search import Outcome, Space, configurations, context_tokens, judge, replica_share

CONTEXT = "workload.context_tokens"
INPUT = "workload.input_tokens"
OUTPUT = "workload.output_tokens"
REPLICAS = "replicas"

_DIGITS = 4  # of an offered figure: people retype it
_HALVINGS = 20  # an intent that a millionth of its rate does not help fails for another reason
_NEAR = 1.0005  # factor to which the offered rate is searched
_MAX_REPLICAS = 1000  # of an intent
_REPLICAS_TRIED = 16  # with more of them max_gpus may leave smaller configurations only

Measured = Iterable[tuple[Configuration, Estimator]]


def counteroffers(intent: Intent, space: Space, outcome: Outcome) -> tuple[Counteroffer, ...]:
    """Each is met, and nothing nearer in its one field would be (to four digits). Smallest relative change first."""
    if context_tokens(intent.workload, space.facts) is None:
        shorter = _shorter(intent, space.facts)
        found = [
            offer for offer in shorter if _meets(offer.intent, configurations(offer.intent.workload, space), space)
        ]
    else:
        found = [*_limits(intent, outcome), *_rates(intent, space)]
    return tuple(sorted(found, key=lambda offer: abs(offer.offered - offer.wanted) / (offer.wanted or 1.0)))


def _limits(intent: Intent, outcome: Outcome) -> Iterator[Counteroffer]:
    """From the configurations that miss one constraint only, which no prediction depends on."""
    alone = [j.misses[0] for j in outcome.missed if len(j.misses) == 1]
    for constraint in (TTFT, TPOT, E2E, ACCURACY, GPUS):
        nearest = min(
            (miss for miss in alone if miss.constraint == constraint and miss.predicted is not None),
            key=lambda miss: miss.excess,
            default=None,
        )
        if nearest is None or nearest.predicted is None:
            continue
        offered = nearest.predicted if constraint == GPUS else _rounded(nearest.predicted, up=constraint != ACCURACY)
        if constraint in (ACCURACY, GPUS) or offered <= DAY_MS:
            yield _offer(intent, constraint, nearest.wanted, offered)


def _rates(intent: Intent, space: Space) -> Iterator[Counteroffer]:
    """Fewer requests, or more replicas for them. Predictions only fall with the rate: halving finds the limit."""
    wanted = intent.workload.request_rate_per_s
    slowest = _at_rate(intent, wanted / 2**_HALVINGS)
    viable = [pair for pair in configurations(intent.workload, space) if _meets(slowest, [pair], space)]
    if not viable:
        return
    met, missed = wanted / 2**_HALVINGS, wanted
    while missed / met > _NEAR:
        middle = missed / 2 if missed / met > 4 else (met * missed) ** 0.5
        if _meets(_at_rate(intent, middle), viable, space):
            met = middle
        else:
            missed = middle
    yield _offer(intent, RATE, wanted, _rounded(met, up=False))
    enough = floor((intent.replicas or 1) * wanted / missed)
    first = max((intent.replicas or 1) + 1, enough)
    for replicas in range(first, min(_MAX_REPLICAS + 1, first + _REPLICAS_TRIED)):
        offer = _offer(intent, REPLICAS, (intent.replicas or 1), replicas)
        if _meets(offer.intent, viable, space):
            yield offer
            return


def _shorter(intent: Intent, facts: ModelFacts) -> Iterator[Counteroffer]:
    """Workloads that the model's context holds; the longest request asked for follows where it has to."""
    work, most = intent.workload, facts.max_context_tokens
    if work.context_tokens is not None and work.input_tokens + work.output_tokens <= most:
        yield _offer(intent, CONTEXT, work.context_tokens, most)
        return
    held = intent.model_copy(update={"workload": work.model_copy(update={"context_tokens": None})})
    for constraint, wanted, rest in (
        (INPUT, work.input_tokens, work.output_tokens),
        (OUTPUT, work.output_tokens, work.input_tokens),
    ):
        if rest < most:
            yield _offer(held, constraint, wanted, most - rest)


def _meets(intent: Intent, measured: Measured, space: Space) -> bool:
    share = replica_share(intent)
    return any(not judge(intent, share, c, estimator, space).misses for c, estimator in measured)


def _at_rate(intent: Intent, rate_per_s: float) -> Intent:
    return intent.model_copy(update={"workload": _changed(intent.workload, "request_rate_per_s", rate_per_s)})


def _offer(intent: Intent, constraint: str, wanted: float, offered: float) -> Counteroffer:
    section, _, field = constraint.rpartition(".")
    if section == "slo":
        update: dict[str, object] = {"slo": intent.slo.model_copy(update={field: offered})}
    elif section == "workload":
        update = {"workload": _changed(intent.workload, field, offered)}
    else:
        update = {field: offered if constraint == ACCURACY else round(offered)}
    return Counteroffer(constraint=constraint, wanted=wanted, offered=offered, intent=intent.model_copy(update=update))


def _changed(workload: Workload, field: str, value: float) -> Workload:
    return workload.model_copy(update={field: round(value) if field.endswith("_tokens") else value})


def _rounded(value: float, *, up: bool) -> float:
    """To _DIGITS, never past `value` on the wrong side."""
    return float(Context(prec=_DIGITS, rounding=ROUND_CEILING if up else ROUND_FLOOR).create_decimal(repr(value)))
