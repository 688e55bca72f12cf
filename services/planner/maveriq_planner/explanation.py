"""Why no configuration meets an intent, in words. Pure: intent, outcome and counteroffers in, sentences out."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np

from maveriq.contracts import QUIET_SHARE, Counteroffer, Intent, ModelFacts, Objective, Precision
from maveriq_planner.constraints import ACCURACY, LATENCIES, RATE, Miss
from maveriq_planner.figures import counted, figure
from maveriq_planner.fleets import BY_SIZE
from maveriq_planner.offering import is_joint
from maveriq_planner.prices import example
from maveriq_planner.search import Judged, Outcome
from maveriq_planner.space import Space
from maveriq_planner.workloads import context_tokens

_SILENT_SHOWN = 3
_ALIKE = 0.8  # of two names: a slip of the pen, no other GPU
_MEASURE = "maveriq calibrate measures the GPU type of a node"
_NEVER_MEASURED = "was never measured"


def explain(intent: Intent, space: Space, outcome: Outcome, offers: Sequence[Counteroffer]) -> str:
    """Names each constraint as the intent's field, so that the reader knows what to change."""
    if context_tokens(intent.workload, space.facts) is None:
        reason = _too_long(intent, space.facts)
    elif outcome.judged is None:
        reason = _nothing_left(intent, space)
    else:
        configurations = counted(outcome.num_considered, "configuration")
        reason = f"none of {configurations} of {intent.model} meets the intent: " + "; ".join(
            [*_by_constraint(outcome.judged), *_nearest(outcome.judged, outcome, offers)]
        )
    return f"{reason}. {_remedy(offers)}{_no_fleet(intent)}{_disturbed(space)}"


def _remedy(offers: Sequence[Counteroffer]) -> str:
    met = ", or ".join(offer.words or f"{offer.constraint} {figure(offer.offered)}" for offer in offers)
    if is_joint(offers):
        return f"No change of a single field would be met; it would with {met}"
    return f"It would be met with {met}" if offers else "No change of a single field would be met"


def _no_fleet(intent: Intent) -> str:
    """Of one whose requests differ in size: a fleet was looked for too."""
    if intent.workload.histogram is None or intent.replicas is not None or intent.objective not in BY_SIZE:
        return ""
    if intent.workload.concurrency is not None:
        return ". GPU types that share requests by size are planned only without workload.concurrency"
    return ". Nor do GPU types that share the requests by size, over all that was free or held by deployments"


def _disturbed(space: Space) -> str:
    """Whether all of this may look better once a device is measured undisturbed."""
    shares = {each.kind.gpu_type: each.others for each in space.estimators if each.others > QUIET_SHARE}
    if not shares:
        return ""
    each = ", ".join(f"{figure(100 * share)} % of {gpu_type}" for gpu_type, share in shares.items())
    return f". These figures are provisional: others took {each} while it was measured"


def _too_long(intent: Intent, facts: ModelFacts) -> str:
    work = intent.workload
    most = f"{intent.model} reads at most {facts.max_context_tokens} tokens, prompt and answer together"
    if work.input_tokens + work.output_tokens > facts.max_context_tokens:
        return (
            f"{most}: workload.input_tokens {work.input_tokens} + workload.output_tokens {work.output_tokens} is more"
        )
    return f"{most}: workload.context_tokens {work.context_tokens} is more"


def _nothing_left(intent: Intent, space: Space) -> str:
    """The intent, or what is known, leaves no configuration at all."""
    if not space.estimators:
        return f"nothing can be predicted for {intent.model}: {_silent(space.silent)}; {_MEASURE}"
    named = [estimator.kind for estimator in space.estimators]
    if intent.gpu_types is not None:
        named = [kind for kind in named if kind.gpu_type in intent.gpu_types]
        if not named:
            return _no_type(intent.gpu_types, space)
    if intent.precisions is not None:
        named = [kind for kind in named if kind.precision in intent.precisions]
        if not named:
            return _no_precision(intent, intent.precisions, space)
    types = tuple(dict.fromkeys(kind.gpu_type for kind in named))
    if intent.objective is Objective.MIN_PRICE and all(space.price_of(name) is None for name in types):
        return f"objective min_price needs prices, and {_priceless(types)}"
    return "no tensor-parallel degree of the engine divides the model's attention heads and key-value heads"


def _no_type(wanted: Sequence[str], space: Space) -> str:
    known = f"gpu_types allows only {', '.join(wanted)}; the GPU types that were measured are "
    spoken = [reason for reason in space.silent if any(name in reason for name in wanted)]
    if spoken:
        return f"{known}{', '.join(space.gpu_types)}: {_silent(spoken)}"
    alike = [name for name in space.gpu_types if any(_alike(name, each) for each in wanted)]
    meant = f" (names count letter by letter: did you mean {' or '.join(alike)}?)" if alike else f"; {_MEASURE}"
    return f"{known}{', '.join(space.gpu_types)}{meant}"


def _alike(name: str, wanted: str) -> bool:
    one, other = name.lower(), wanted.lower()
    return one in other or other in one or SequenceMatcher(None, one, other).ratio() > _ALIKE


def _no_precision(intent: Intent, wanted: Sequence[Precision], space: Space) -> str:
    allowed = f"precisions allows only {', '.join(wanted)}"
    labels = [variant.label for variant in space.model.variants if variant.precision in wanted]
    if labels:
        spoken = [reason for reason in space.silent if any(label in reason for label in labels)]
        return f"{allowed}: {_silent(spoken)}" if spoken else f"{allowed}, which the allowed GPU types cannot run"
    have = ", ".join(space.precisions)
    return f"{allowed}; {intent.model} is registered with no such variant: those that were measured are {have}"


def _silent(reasons: Sequence[str]) -> str:
    shown = "; ".join(reasons[:_SILENT_SHOWN])
    more = len(reasons) - _SILENT_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


def _priceless(gpu_types: Sequence[str]) -> str:
    names = ", ".join(gpu_types)
    return f"no price is known for {names}: give the planner {example(gpu_types)}, money an hour of one GPU"


def _by_constraint(judged: Judged) -> Iterator[str]:
    for miss in sorted(judged.misses, key=lambda miss: -int(miss.missed.sum())):
        count = int(miss.missed.sum())
        if count:
            yield f"{count:,} miss {miss.constraint} {figure(miss.wanted)} ({_best(judged, miss)})"


def _best(judged: Judged, miss: Miss) -> str:
    nearest = int(np.where(miss.missed, miss.excess, np.inf).argmin())
    best = float(miss.predicted[nearest])
    if miss.constraint == ACCURACY:
        return _accuracies(judged, miss)
    if np.isnan(best):
        c = judged.columns
        unpriced = dict.fromkeys(c.kind(int(i)).gpu_type for i in np.flatnonzero(np.isnan(miss.predicted)))
        return _priceless(tuple(unpriced))
    slo = judged.intent.slo
    at = f"at percentile {figure(slo.percentile)} " if slo.percentile and miss.constraint in LATENCIES else ""
    if miss.constraint == RATE and judged.running[nearest] > 1:
        return f"at best {figure(best)}, with {counted(int(judged.running[nearest]), 'replica')}"
    return f"{at}at best {figure(best)}"


def _accuracies(judged: Judged, miss: Miss) -> str:
    """The best of those that were measured, and those that were not."""
    c, parts = judged.columns, list[str]()
    known = miss.predicted[miss.missed & ~np.isnan(miss.predicted)]
    if len(known):
        parts.append(f"at best {figure(float(known.max()))}")
    kinds = [estimator.kind for estimator in c.estimators]
    unknown = dict.fromkeys(kind.variant.label for kind in kinds if kind.variant.accuracy is None)
    if unknown:
        measures = f"maveriq accuracy {judged.intent.model} measures it"
        parts.append(f"{', '.join(unknown)} {_NEVER_MEASURED}: {measures}")
    return "; ".join(parts)


def _nearest(judged: Judged, outcome: Outcome, offers: Sequence[Counteroffer]) -> Iterator[str]:
    """The nearest miss in full where no single field helps: its misses belong together."""
    first = int(outcome.missed[0])
    missed = [miss for miss in judged.misses if miss.missed[first]]
    if (offers and not is_joint(offers)) or len(missed) == 1:
        return
    together = " and ".join(f"{miss.constraint} {_value(float(miss.predicted[first]))}" for miss in missed)
    yield f"the nearest, {_name(judged, first)}, has {together}"


def _value(predicted: float) -> str:
    return "not measured" if np.isnan(predicted) else figure(predicted)


def _name(judged: Judged, i: int) -> str:
    c = judged.columns
    kind = c.kind(i)
    shape = f"TP {c.tp[i]}, PP {c.pp[i]}, {counted(int(c.slots[i]), 'slot')}"
    return f"{kind.variant.label} on {c.num_gpus[i]} x {kind.gpu_type} ({shape})"
