"""Which counteroffers the GPUs there are would hold, were nothing deployed. Pure: a refused intent in, offers out.

A dry run is answered with all of them: what more GPUs would do is its question too. Who deploys is offered, of each
field, the nearest that has a seat: as it is, or as it is where pipelines are no longer than a node is wide and there
are no more replicas than GPUs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from maveriq.contracts import Admission, Counteroffer, Fragment, Intent
from maveriq_planner.constraints import GPUS
from maveriq_planner.counteroffers import counteroffers
from maveriq_planner.listing import listing
from maveriq_planner.offering import is_joint
from maveriq_planner.room import fitting_first
from maveriq_planner.search import Outcome, search
from maveriq_planner.space import Space

BEYOND = ". The GPUs there are would not hold that, were nothing deployed"


def within_reach(admission: Admission, space: Space, outcome: Outcome) -> tuple[tuple[Counteroffer, ...], str]:
    """The offers, and what is to be said of them: all of them where a deploy of none would be given a seat."""
    offers = counteroffers(admission.intent, space, outcome)
    if admission.dry_run or not offers or not admission.fragments or admission.num_left_out:
        return offers, ""
    emptied = tuple(
        one.model_copy(update={"free_bytes": one.free_bytes + one.held_bytes}) for one in admission.fragments
    )
    held: dict[str, Counteroffer] = {}
    for offer in (*offers, *_modest(admission.intent, space, emptied)):
        if offer.constraint not in held and _holds(emptied, offer.intent, space):
            held[offer.constraint] = offer
    single = tuple(offer for offer in held.values() if not is_joint([offer]))
    return (single or tuple(held.values()) or offers), ("" if held else BEYOND)


def _modest(intent: Intent, space: Space, emptied: Sequence[Fragment]) -> Iterator[Counteroffer]:
    """Offers for the same intent, had it asked for no more GPUs than there are."""
    widest = max(Counter((one.engine, one.node) for one in emptied).values())
    here = replace(space, max_pp=min(space.max_pp, widest))
    capped = intent.model_copy(update={GPUS: min(intent.max_gpus or len(emptied), len(emptied))})
    outcome = search(capped, here)
    for offer in () if len(outcome.met) else counteroffers(capped, here, outcome):
        if GPUS not in offer.constraint or capped.max_gpus == intent.max_gpus:
            yield offer.model_copy(update={"intent": offer.intent.model_copy(update={GPUS: intent.max_gpus})})


def _holds(emptied: Sequence[Fragment], intent: Intent, space: Space) -> bool:
    """As far as it is known here: of several replicas an allocator may seat more."""
    _, num_fitting = fitting_first(listing(search(intent, space)).candidates, space.facts.num_layers, emptied)
    return bool(num_fitting)
