"""A replica that moves: its copy starts, relieves it, and it drains. Pure: a record and a fact in, the next record out.

The copy has a replica number of its own, because it may be on the same node, whose worker replaces what has the same.
Until it serves, the replica serves; a copy that is lost before is given up, and a replica that is lost while its copy
starts needs no other.
"""

from uuid import UUID

from maveriq_allocator.movable import Place
from maveriq_allocator.record import Held, Move, Phase, Record

MAX_KEPT = 32  # moves remembered of a deployment: a message about one comes soon or never


def begun(record: Record, defragmentation_id: UUID, number: int, old: Held, place: Place) -> Record:
    """The copy of `old` holds its bytes, and is to be started."""
    waiting = record.waiting.missing if record.waiting is not None else ()
    taken = [held.placement.replica for held in record.held] + [missing.replica for missing in waiting]
    replica = max(taken) + 1
    placement = old.placement.model_copy(
        update={
            "replica": replica,
            "token": f"{record.deployment_id}.{replica}.{record.num_issued}",
            "number": record.num_issued,
            "node": place.node,
            "stages": place.stages,
        }
    )
    move = Move(
        defragmentation_id=defragmentation_id, number=number, old=old.placement.token, new=placement.token
    )  # fmt: skip
    changes = {
        "held": (*record.held, Held(placement=placement, rank=old.rank, phase=Phase.RESERVED)),
        "moves": (*[other for other in record.moves if other.old != move.old][-MAX_KEPT:], move),
        "num_issued": record.num_issued + 1,
    }
    return record.model_copy(update=changes)


def relieved(record: Record, token: str) -> Record:
    """Once `token` serves, what it is a copy of drains."""
    move = by_copy(record, token)
    new, old = record.holding(token), record.holding(move.old) if move is not None else None
    if old is None or new is None or new.phase is not Phase.READY or record.closing is not None:
        return record
    draining = old.model_copy(update={"phase": Phase.DRAINING})
    return record.model_copy(update={"held": tuple(draining if held is old else held for held in record.held)})


def of_copy(record: Record, token: str) -> Move | None:
    """The move whose copy has this token, while it is under way: what it is to relieve still serves."""
    move = by_copy(record, token)
    old = record.holding(move.old) if move is not None else None
    return None if old is None or old.phase is Phase.DRAINING else move


def is_replaced(record: Record, gone: Held) -> bool:
    """Whether it needs no other seat: it is a copy of what still serves, or has a copy that starts."""
    if of_copy(record, gone.placement.token) is not None:
        return True
    move = from_where(record, gone.placement.token)
    return move is not None and record.holding(move.new) is not None


def from_where(record: Record, token: str) -> Move | None:
    """The move by which this token leaves."""
    return next((move for move in record.moves if move.old == token), None)


def is_spoilt(record: Record, token: str) -> bool:
    """Whether this was the copy of a move, and is gone while what it was to relieve still serves."""
    move = of_copy(record, token)
    return move is not None and record.holding(token) is None and record.closing is None


def by_copy(record: Record, token: str) -> Move | None:
    """The move whose copy has this token."""
    return next((move for move in record.moves if move.new == token), None)
