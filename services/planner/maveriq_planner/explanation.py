"""Why no configuration meets an intent, in words. Pure: intent, outcome and counteroffers in, one sentence each out."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from maveriq.contracts import Configuration, Counteroffer, Intent, ModelFacts
from maveriq_planner.constraints import Miss
from maveriq_planner.search import Outcome, Space, context_tokens


def explain(intent: Intent, space: Space, outcome: Outcome, offers: Sequence[Counteroffer]) -> str:
    """Names each constraint as the intent's field, so that the reader knows what to change."""
    if context_tokens(intent.workload, space.facts) is None:
        reason = _too_long(intent, space.facts)
    elif not outcome.num_considered:
        reason = "no tensor-parallel degree of the engine divides the model's attention heads and key-value heads"
    else:
        reason = f"none of {outcome.num_considered} configurations of {intent.model} meets the intent: " + "; ".join(
            [*_by_constraint(outcome), *_nearest(outcome, offers)]
        )
    if offers:
        met = ", or ".join(f"{offer.constraint} {offer.offered:.6g}" for offer in offers)
        return f"{reason}. It would be met with {met}"
    return f"{reason}. No change of a single field would be met"


def _too_long(intent: Intent, facts: ModelFacts) -> str:
    work = intent.workload
    most = f"{intent.model} reads at most {facts.max_context_tokens} tokens, prompt and answer together"
    if work.input_tokens + work.output_tokens > facts.max_context_tokens:
        return (
            f"{most}: workload.input_tokens {work.input_tokens} + workload.output_tokens {work.output_tokens} is more"
        )
    return f"{most}: workload.context_tokens {work.context_tokens} is more"


def _by_constraint(outcome: Outcome) -> Iterator[str]:
    missed: defaultdict[str, list[Miss]] = defaultdict(list)
    for judged in outcome.missed:
        for miss in judged.misses:
            missed[miss.constraint].append(miss)
    for constraint, found in sorted(missed.items(), key=lambda item: -len(item[1])):
        nearest = min(found, key=lambda miss: miss.excess)
        best = "not measured" if nearest.predicted is None else f"at best {nearest.predicted:.4g}"
        yield f"{len(found)} miss {constraint} {nearest.wanted:.6g} ({best})"


def _nearest(outcome: Outcome, offers: Sequence[Counteroffer]) -> Iterator[str]:
    """The nearest miss in full where no single field helps: its misses belong together."""
    judged = outcome.missed[0]
    if offers or len(judged.misses) == 1:
        return
    together = " and ".join(
        f"{miss.constraint} {'not measured' if miss.predicted is None else format(miss.predicted, '.4g')}"
        for miss in judged.misses
    )
    yield f"the nearest, {_name(judged.configuration)}, has {together}"


def _name(c: Configuration) -> str:
    return f"{c.precision} on {c.num_gpus} x {c.gpu_type} (TP {c.tp}, PP {c.pp}, {c.max_batch} slots)"
