"""The nearest intents that would be met, one constraint relaxed each. Pure: a refused intent in, counteroffers out."""

from collections.abc import Iterator, Sequence

import numpy as np

from maveriq.contracts import DAY_MS, Counteroffer, Intent, ModelFacts, Objective
from maveriq_planner.arrays import Indices
from maveriq_planner.columns import Columns
from maveriq_planner.constraints import ACCURACY, GPUS, LATENCIES, PRICE, RATE, Miss, limited
from maveriq_planner.figures import rounded
from maveriq_planner.offering import CONCURRENCY, DIGITS, PERCENTILE, UNMEASURED, joined, offer, paired, without
from maveriq_planner.replicas import latencies, most_allowed, smallest
from maveriq_planner.search import Judged, Outcome, goodput_per_ms, judge, search
from maveriq_planner.space import Space
from maveriq_planner.workloads import context_tokens

CONTEXT = "workload.context_tokens"
INPUT = "workload.input_tokens"
OUTPUT = "workload.output_tokens"
REPLICAS = "replicas"
GPU_TYPES = "gpu_types"
PRECISIONS = "precisions"

_SLOW = 2.0**-20  # an intent that a millionth of its rate does not help fails for another reason
_NUDGES = 3  # of the last digit, where rounding met a limit from the wrong side
_LOWEST_PERCENTILE = 50.0
_MOST_IN_FLIGHT = 1_000_000
_TRIED = 32  # nearest misses
_SPARED = 0.9  # at the capacity a line grows without end


def counteroffers(intent: Intent, space: Space, outcome: Outcome) -> tuple[Counteroffer, ...]:
    """Each was planned for and is met; nothing nearer in its one field would be, to three digits. Nearest first.

    Where no single field helps: one that changes all that the nearest miss misses; or what is allowed, or that there is
    to be a price, and the nearest of what is then still missed.
    """
    if context_tokens(intent.workload, space.facts) is None:
        found = [made for made in _shorter(intent, space.facts) if len(search(made.intent, space).met)]
    else:
        found = [*_wider(intent, space)]
        if outcome.judged is not None:
            found += [*_limits(outcome.judged), *_slo(outcome.judged), *_load(outcome.judged)]
            found = found or [*_unpriced(intent, space), *_together(outcome.judged, outcome.missed)][:1]
        elif not found:
            found = [*_unpriced(intent, space)]
        found = found or [*_beside(intent, space)][:1]
    return tuple(sorted(found, key=lambda made: abs(made.offered - made.wanted) / (made.wanted or 1.0)))


def _limits(judged: Judged) -> Iterator[Counteroffer]:
    """From configurations that miss one constraint only, which no prediction depends on."""
    alone = np.sum([miss.missed for miss in judged.misses], axis=0) == 1
    for miss in judged.misses:
        only = alone & miss.missed
        if miss.constraint == ACCURACY and (only & np.isnan(miss.predicted)).any():
            yield offer(judged.intent, UNMEASURED, 0, 1)
        known = miss.predicted[only & ~np.isnan(miss.predicted)]
        if not len(known):
            continue
        if miss.constraint == GPUS:
            yield offer(judged.intent, GPUS, miss.wanted, float(known.min()))
        elif miss.constraint == PRICE:
            yield offer(judged.intent, PRICE, miss.wanted, rounded(float(known.min()), DIGITS, up=True))
        elif miss.constraint == ACCURACY:
            yield offer(judged.intent, ACCURACY, miss.wanted, rounded(float(known.max()), 4, up=False))


def _slo(judged: Judged) -> Iterator[Counteroffer]:
    """What configurations that meet all else do at their best: with as many replicas as the budgets hold."""
    intent, columns = judged.intent, judged.columns
    for constraint in LATENCIES:
        wanted = getattr(intent.slo, constraint.removeprefix("slo."))
        if wanted is None:
            continue
        viable = columns.take(np.flatnonzero(judge(without(intent, constraint), columns).met))
        if not len(viable):
            continue
        replicas = np.full(len(viable), float(intent.replicas)) if intent.replicas else most_allowed(intent, viable)
        at_best = {
            name: values for name, _, values in limited(intent.slo, latencies(intent, viable.replicas, replicas))
        }
        offered = rounded(float(at_best[constraint].min()), DIGITS, up=True)
        if wanted < offered <= DAY_MS:
            yield from _nudged(intent, constraint, wanted, offered, viable, up=True)
    if intent.slo.percentile is not None:
        yield from _percentile(intent, intent.slo.percentile, columns)


def _percentile(intent: Intent, wanted: float, columns: Columns) -> Iterator[Counteroffer]:
    """The highest share of requests for which the limits hold."""
    least = offer(intent, PERCENTILE, wanted, _LOWEST_PERCENTILE)
    viable = columns.take(np.flatnonzero(judge(least.intent, columns).met))
    if not len(viable) or wanted <= _LOWEST_PERCENTILE:
        return
    low, high = round(_LOWEST_PERCENTILE * 10), int(np.ceil(wanted * 10))  # tenths of a percent
    while high - low > 1:
        middle = (low + high) // 2
        meets = judge(offer(intent, PERCENTILE, wanted, middle / 10).intent, viable).met.any()
        low, high = (middle, high) if meets else (low, middle)
    yield offer(intent, PERCENTILE, wanted, low / 10)


def _load(judged: Judged) -> Iterator[Counteroffer]:
    """Fewer requests, more or fewer replicas for them, or more or fewer in flight."""
    intent, columns = judged.intent, judged.columns
    wanted = intent.workload.request_rate_per_s
    slow = offer(intent, RATE, wanted, max(wanted * _SLOW, 5e-324)).intent
    viable = columns.take(np.flatnonzero(judge(slow, columns).met))
    if len(viable):
        replicas = np.full(len(viable), float(intent.replicas)) if intent.replicas else most_allowed(intent, viable)
        borne = goodput_per_ms(intent, viable, np.maximum(replicas, 1.0)) * 1e3 * replicas
        best = float(np.nan_to_num(borne).max())
        if 0 < best < wanted:
            yield from _nudged(intent, RATE, wanted, rounded(best, DIGITS, up=False), viable, up=False)
    if intent.replicas is not None:
        yield from _replicas(intent, intent.replicas, columns)
    if intent.workload.concurrency is not None:
        yield from _in_flight(intent, intent.workload.concurrency, columns)


def _replicas(intent: Intent, wanted: int, columns: Columns) -> Iterator[Counteroffer]:
    free = without(intent, REPLICAS)
    met = np.flatnonzero(judge(free, columns).met)
    if not len(met):
        return
    viable = columns.take(met)
    needed, allowed = smallest(free, viable), most_allowed(free, viable)
    more = needed[needed > wanted]
    fewer = np.minimum(allowed, wanted - 1)[needed < wanted]
    if len(fewer) and (allowed < wanted).all():
        yield offer(intent, REPLICAS, wanted, float(fewer.max()))
    elif len(more):
        yield offer(intent, REPLICAS, wanted, float(more.min()))


def _in_flight(intent: Intent, wanted: int, columns: Columns) -> Iterator[Counteroffer]:
    """Fewer wait less; more let a larger batch work. Doubles or halves until it does, then halves the gap."""

    def meets(number: int) -> bool:
        return bool(judge(offer(intent, CONCURRENCY, wanted, number).intent, columns).met.any())

    for steps in (
        [wanted >> i for i in range(1, wanted.bit_length())],
        [wanted << i for i in range(1, 21) if wanted << i <= _MOST_IN_FLIGHT],
    ):
        does = next((number for number in steps if meets(number)), None)
        if does is None:
            continue
        fails = wanted if does == steps[0] else steps[steps.index(does) - 1]
        while abs(does - fails) > 1:
            middle = (does + fails) // 2
            does, fails = (middle, fails) if meets(middle) else (does, middle)
        yield offer(intent, CONCURRENCY, wanted, does)


def _wider(intent: Intent, space: Space) -> Iterator[Counteroffer]:
    """One GPU type or precision more: that of the configuration that is then best."""
    for constraint, names in ((GPU_TYPES, intent.gpu_types), (PRECISIONS, intent.precisions)):
        if names is None:
            continue
        wider = _widened(without(intent, constraint), space, constraint, names)
        if wider is not None:
            yield wider


def _widened(freed: Intent, space: Space, constraint: str, names: Sequence[str]) -> Counteroffer | None:
    """With what is best where anything is allowed; None: nothing meets the rest."""
    outcome = search(freed, space)
    if outcome.judged is None or not len(outcome.met):
        return None
    kind = outcome.judged.columns.kind(int(outcome.met[0]))
    added = kind.gpu_type if constraint == GPU_TYPES else kind.precision
    return Counteroffer(
        constraint=constraint, wanted=len(names), offered=len(names) + 1,
        intent=freed.model_copy(update={constraint: (*names, added)}), words=f"{constraint} with {added} among them",
    )  # fmt: skip


def _beside(intent: Intent, space: Space) -> Iterator[Counteroffer]:
    """What is allowed, or a price that nobody knows, is in the way, and something else too: both give way."""
    for constraint in (GPU_TYPES, PRECISIONS, PRICE):
        names = getattr(intent, constraint)
        if names is None:
            continue
        freed = without(intent, constraint)
        for made in counteroffers(freed, space, search(freed, space))[:1]:
            first = (
                Counteroffer(constraint=PRICE, wanted=names, offered=0, intent=made.intent, words=f"no {PRICE}")
                if constraint == PRICE
                else _widened(made.intent, space, constraint, names)
            )
            if first is not None:
                yield paired(first, made)


def _unpriced(intent: Intent, space: Space) -> Iterator[Counteroffer]:
    """Where prices are asked for and none is known: the nearest that needs none."""
    if intent.objective is Objective.MIN_PRICE:
        cheap = intent.model_copy(update={"objective": Objective.MIN_GPU_COST})
        made = Counteroffer(constraint="objective", wanted=0, offered=0, intent=cheap, words="objective min_gpu_cost")
    elif intent.max_price_per_hour is not None and all(space.price_of(name) is None for name in space.gpu_types):
        made = Counteroffer(
            constraint=PRICE, wanted=intent.max_price_per_hour, offered=0, intent=without(intent, PRICE),
            words=f"no {PRICE}",
        )  # fmt: skip
    else:
        return
    if len(search(made.intent, space).met):
        yield made


def _together(judged: Judged, missed: Indices) -> Iterator[Counteroffer]:
    """All that the nearest miss misses, as it does it."""
    for i in missed[:_TRIED].tolist():
        budgets = _budgets(judged, i)
        rest = judge(joined(judged.intent, budgets).intent, judged.columns) if budgets else judged
        changes = [*budgets, *(_as_predicted(miss, i) for miss in rest.misses if miss.missed[i])]
        known = [change for change in changes if change is not None]
        if len(known) == len(changes):
            made = joined(judged.intent, known)
            if judge(made.intent, judged.columns).met.any():
                yield made
                return


def _budgets(judged: Judged, i: int) -> list[tuple[str, float, float]]:
    """What of them gives way; of several replicas a few more: the fewest that bear a rate let requests wait long."""
    spared = _SPARED if judged.replicas[i] > 1 else 1.0
    found = [(miss, float(miss.predicted[i]) / spared) for miss in judged.misses if miss.missed[i]]
    return [
        (
            miss.constraint,
            miss.wanted,
            float(np.ceil(most)) if miss.constraint == GPUS else rounded(most, DIGITS, up=True),
        )
        for miss, most in found
        if miss.constraint in (GPUS, PRICE) and not np.isnan(most)
    ]


def _as_predicted(miss: Miss, i: int) -> tuple[str, float, float] | None:
    """None: nothing is known that could be offered."""
    predicted = float(miss.predicted[i])
    if np.isnan(predicted):
        return (UNMEASURED, 0, 1) if miss.constraint == ACCURACY else None
    if miss.constraint == GPUS:
        return miss.constraint, miss.wanted, predicted
    if miss.constraint == ACCURACY:
        return miss.constraint, miss.wanted, rounded(predicted, 4, up=False)
    lower = miss.constraint == RATE
    offered = rounded(predicted * (_SPARED if lower else 1.0), DIGITS, up=not lower)
    return None if not lower and offered > DAY_MS else (miss.constraint, miss.wanted, offered)


def _nudged(
    intent: Intent, constraint: str, wanted: float, offered: float, columns: Columns, *, up: bool
) -> Iterator[Counteroffer]:
    """Planned for; a last digit more where it takes that."""
    for _ in range(_NUDGES):
        made = offer(intent, constraint, wanted, offered)
        if judge(made.intent, columns).met.any():
            yield made
            return
        offered = rounded(offered * (1 + 10.0**-DIGITS if up else 1 - 10.0**-DIGITS), DIGITS, up=up)


def _shorter(intent: Intent, facts: ModelFacts) -> Iterator[Counteroffer]:
    """Workloads that the model's context holds; the longest request asked for follows where it has to."""
    work, most = intent.workload, facts.max_context_tokens
    if work.context_tokens is not None and work.input_tokens + work.output_tokens <= most:
        yield offer(intent, CONTEXT, work.context_tokens, most)
        return
    held = intent.model_copy(update={"workload": work.model_copy(update={"context_tokens": None})})
    for constraint, wanted, rest in (
        (INPUT, work.input_tokens, work.output_tokens),
        (OUTPUT, work.output_tokens, work.input_tokens),
    ):
        if rest < most:
            yield offer(held, constraint, wanted, most - rest)
