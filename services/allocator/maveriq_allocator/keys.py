"""The names of what the allocator keeps in Redis. Nobody else writes or reads there.

    maveriq:allocator:nodes                set: every node that ever reported
    maveriq:allocator:node:<node>          hash: engine; gpus, the last report's as JSON; reported_at_s, Redis' clock;
                                           limit|<gpu>: total - foreign, what the scripts look at
    maveriq:allocator:node:<node>:held     hash: <gpu>|<deployment>/<replica> -> bytes: one field a reservation's GPU;
                                           <gpu>|<hold>/hold -> bytes: held for a calibration
    maveriq:allocator:holds                hash: hold -> where it is (`holds.Place`)
    maveriq:allocator:holds:ends           sorted set: hold -> when it ends unless asked for again, ms by Redis' clock
    maveriq:allocator:deployment:<id>      hash: version; record (`lifecycle.Record`); plan (`PlanComputed`)
    maveriq:allocator:holds:wanted         there while calibrations are to give back what they hold
    maveriq:allocator:holds:wanted:<deployment>   how often it asked for that

A node's two hashes are all that a reservation on it looks at: nothing scans the cluster. What is free is always
total - foreign - sum(held), never a counter of its own that could drift. A deployment's version grows with each
change, and `commit.lua` changes record and held bytes together or not at all.
"""

from uuid import UUID

NODES = "maveriq:allocator:nodes"
HOLDS = "maveriq:allocator:holds"
HOLD_ENDS = "maveriq:allocator:holds:ends"
WANTED = "maveriq:allocator:holds:wanted"


def node(name: str) -> str:
    return f"maveriq:allocator:node:{name}"


def held(name: str) -> str:
    return f"maveriq:allocator:node:{name}:held"


def limit(gpu: str) -> str:
    """Field of a node's hash."""
    return f"limit|{gpu}"


def deployment(deployment_id: UUID) -> str:
    return f"maveriq:allocator:deployment:{deployment_id}"


def holding(gpu: str, deployment_id: UUID, replica: int) -> str:
    """Field of a node's `held` hash."""
    return f"{gpu}|{deployment_id}/{replica}"


def hold(gpu: str, hold_id: UUID) -> str:
    """Field of a node's `held` hash."""
    return f"{gpu}|{hold_id}/hold"


def parse_holding(field: str) -> tuple[str, UUID, int | None]:
    """The GPU, deployment and replica of a field; of a calibration's the GPU, the hold and None."""
    gpu, _, holder = field.rpartition("|")
    owner, _, replica = holder.rpartition("/")
    return gpu, UUID(owner), None if replica == "hold" else int(replica)
