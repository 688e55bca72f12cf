"""Which GPU type a request is sent to. Pure: a request, routes and lengths seen so far in, GPU types in order out.

A producer has no tokenizer and nobody knows an answer's length before it is there, so both are estimated: the prompt
from its characters, the answer from what came back for prompts of about that length. An estimate that is wrong costs
speed, never an answer: every replica of a deployment takes every request.
"""

from collections.abc import Sequence
from uuid import UUID

from maveriq.contracts import RequestSubmitted, Route
from maveriq.contracts.routing import Lane
from maveriq.lengths import Lengths, Size

_DRAWN_BITS = 64  # of a request's id, which is random


def route(request: RequestSubmitted, routes: Sequence[Route], lengths: Lengths) -> tuple[str, ...]:
    """GPU types, the one to send it to first; none where nothing is routed. The same request gets the same answer."""
    if not routes:
        return ()
    found = route_of(lengths.size(request), routes)
    first = _drawn(found, request.request_id)
    others = (served.gpu_type for served in found.served_by if served.gpu_type != first)
    return (first, *others)


def route_of(size: Size, routes: Sequence[Route]) -> Route:
    """The smallest bucket that holds the request; where none does, the one that it exceeds least."""

    def key(one: Route) -> tuple[float, float, float]:
        beyond = max(size.input_tokens / one.input_up_to, size.output_tokens / one.output_up_to)
        return max(1.0, beyond), one.input_up_to, one.output_up_to

    return min(routes, key=key)


def serving(routes: Sequence[Route], gpu_types: frozenset[str]) -> tuple[Route, ...]:
    """The routes to types that serve now: a bucket whose types are all gone goes to any that is left."""
    left = [(one, tuple(s for s in one.served_by if s.gpu_type in gpu_types)) for one in routes]
    return tuple(one.model_copy(update={"served_by": served_by}) for one, served_by in left if served_by)


def lanes_of(routes: Sequence[Route], gpu_type: str) -> tuple[Lane, ...]:
    """Whose requests a replica of this type answers: its own, and with which rank those of each other type.

    What is over for one type goes to the others in the order in which they come in its buckets, on average.
    """
    types = tuple(dict.fromkeys(served.gpu_type for one in routes for served in one.served_by))
    lanes = [Lane(gpu_type=host, rank=_rank(routes, types, host, gpu_type)) for host in types]
    return tuple(sorted(lanes, key=lambda lane: lane.rank))


def _rank(routes: Sequence[Route], types: Sequence[str], host: str, guest: str) -> int:
    if guest == host:
        return 0
    order = sorted((one for one in types if one != host), key=lambda one: _distance(routes, host, one))
    return 1 + (order.index(guest) if guest in order else len(order))


def _distance(routes: Sequence[Route], host: str, guest: str) -> float:
    """Place of the guest in the buckets that go to the host first, on average over their requests."""
    weights = [(one, one.share * served.share) for one in routes for served in one.served_by if served.gpu_type == host]
    return sum(weight * _place(one, guest) for one, weight in weights)


def _place(one: Route, gpu_type: str) -> int:
    order = [served.gpu_type for served in one.served_by]
    return order.index(gpu_type) if gpu_type in order else len(order)


def _drawn(one: Route, request_id: UUID) -> str:
    """Where a bucket is shared, the request's id decides."""
    total = sum(served.share for served in one.served_by)
    drawn = (request_id.int >> 64) / 2**_DRAWN_BITS * total
    for served in one.served_by:
        drawn -= served.share
        if drawn < 0:
            return served.gpu_type
    return one.served_by[0].gpu_type
