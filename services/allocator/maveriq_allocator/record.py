"""What is known of a deployment: what it holds, what it waits for, and how it ended. Pure."""

from enum import StrEnum
from uuid import UUID

from maveriq.contracts import Failure, Placement, Value
from maveriq_allocator.parts import FLEET
from maveriq_allocator.waiting import Waiting

REPLANNED = FLEET  # rank of what was placed by an earlier plan: whatever follows it begins at the best


class Phase(StrEnum):
    RESERVED = "reserved"
    READY = "ready"
    DRAINING = "draining"


class Closing(StrEnum):
    """Why a deployment takes nothing more."""

    RELEASED = "released"
    FAILED = "failed"


class Held(Value):
    """One replica's reservation."""

    placement: Placement
    rank: int
    """Of its candidate in the plan; FLEET: of the plan's fleet; REPLANNED: of an earlier plan."""
    phase: Phase


class Stray(Value):
    """A replica that was lost and holds nothing, yet may run unheard: cut off, or started again before it was lost."""

    node: str
    replica: int
    token: str


class Move(Value):
    """A replica that starts elsewhere, and relieves the one that it is a copy of once it serves."""

    defragmentation_id: UUID
    number: int
    """Of the move in its defragmentation."""
    old: str
    """Token of what is relieved."""
    new: str


class Record(Value):
    """One deployment. Closed and empty it is a tombstone: what comes late reserves nothing."""

    deployment_id: UUID
    planned: bool = False
    held: tuple[Held, ...] = ()
    closing: Closing | None = None
    failure: Failure | None = None
    strays: tuple[Stray, ...] = ()
    waiting: Waiting | None = None
    """For seats that it does not have; it may serve meanwhile with those that it has."""
    moves: tuple[Move, ...] = ()
    """The latest of each replica."""
    num_issued: int = 0
    """Tokens given out; numbers the next."""
    remade: bool = False
    """From what its replicas tell, for it was lost."""

    @property
    def ended(self) -> bool:
        return self.closing is not None and not self.held

    @property
    def is_lost(self) -> bool:
        """Nothing is known of the deployment but what its replicas tell, if there are any."""
        return self.closing is None and (self.remade or not (self.planned or self.waiting))

    def holding(self, token: str) -> Held | None:
        return next((held for held in self.held if held.placement.token == token), None)
