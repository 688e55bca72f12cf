"""Where one replica goes."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from maveriq.contracts import Stage

UNPROVEN = 1.0  # gap of a seat of which nothing is proven but that the replica fits there


@dataclass(frozen=True, slots=True)
class Seat:
    node: str
    """Of its first stage."""
    stages: tuple[Stage, ...]
    gap: float = 0.0
    """See `Placement.gap`."""


def unproven(seats: Iterable[Seat]) -> tuple[Seat, ...]:
    return tuple(replace(seat, gap=UNPROVEN) for seat in seats)
