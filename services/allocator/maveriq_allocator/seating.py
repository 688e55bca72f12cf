"""Seats for all of a candidate's replicas. Pure: what is free in, a seat for each replica out, or none at all.

One replica after the other (`seater`), each where it is best for itself. Where they do not all find a seat that way, it
is tried again with stages that are as even as can be, which leave more to others, and then `together`.
"""

from dataclasses import replace

from maveriq.contracts import Candidate
from maveriq_allocator.budget import Budget
from maveriq_allocator.fleet import Fleet
from maveriq_allocator.manner import Manner
from maveriq_allocator.planned import num_planned_seated, seat_planned
from maveriq_allocator.screening import Shape
from maveriq_allocator.seater import Seater
from maveriq_allocator.seats import Seat


def seat_all(
    candidate: Candidate, num_layers: int, fleet: Fleet, num_replicas: int, manner: Manner, budget: Budget
) -> tuple[Seat, ...] | None:
    """Args:
    fleet: the nodes with the candidate's engine and the GPU types it may use; not changed.
    """
    if candidate.stages:
        return seat_planned(candidate, num_layers, fleet, num_replicas, budget)

    def seater(of: Shape) -> Seater:
        return Seater(candidate, of, fleet, manner, budget)

    shape = manner.shape(candidate, num_layers)
    alone = seater(shape)
    if not alone.may_hold(num_replicas):
        return None
    seats = alone.seats(num_replicas)
    if len(seats) == num_replicas:
        return tuple(seats)
    if num_replicas > 1 and shape.pp > 1 and not budget.is_late():
        even = replace(shape, most_layers=-(-num_layers // shape.pp))
        seats = max(seats, seater(even).seats(num_replicas), key=len)
    if 1 < num_replicas > len(seats):
        seats = seater(shape).together(num_replicas, seats)
    return tuple(seater(shape).judged(seats)) if len(seats) == num_replicas else None


def num_seated(candidate: Candidate, num_layers: int, fleet: Fleet, num_replicas: int) -> int:
    """Replicas that find a seat one after the other, `num_replicas` at most."""
    if candidate.stages:
        return num_planned_seated(candidate, num_layers, fleet, num_replicas)
    manner = Manner()
    seater = Seater(candidate, manner.shape(candidate, num_layers), fleet, manner, Budget())
    return len(seater.seats(num_replicas, all_of=False))
