"""Where one replica goes."""

from dataclasses import dataclass

from maveriq.contracts import Stage

UNPROVEN = 1.0  # gap of a seat that was chosen so that the others find one too


@dataclass(frozen=True, slots=True)
class Seat:
    node: str
    """Of its first stage."""
    stages: tuple[Stage, ...]
    gap: float = 0.0
    """See `Placement.gap`."""
