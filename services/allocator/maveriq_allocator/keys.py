"""The names of what the allocator keeps in Redis. Nobody else writes or reads there.

    maveriq:allocator:changes              hash: every node that is known -> a number that grows whenever what is kept
                                           of it changes: it is read and decoded again only then
    maveriq:allocator:node:<node>          hash: engine; gpus, the last report's as JSON; spans_nodes; number, the
                                           report's; heard_at_ms, by `watch`; headroom, bytes that
                                           stay free on its GPUs together; told_of, the mark of
                                           a silence of which all was told (`tick.lua`); for each GPU
                                           limit|<gpu>: what of it is ours to hold: total - foreign - drift
                                           version|<gpu>: grows whenever its limit, or what is held on it, changes
                                           sum|<gpu>: of what is held on it; where it is missing, it is derived
    maveriq:allocator:node:<node>:held     hash: <gpu>|<token> -> bytes: one field a reservation's GPU;
                                           <gpu>|<hold>/hold -> bytes: held for a calibration
    maveriq:allocator:node:<node>:strange  hash: <gpu>|<token> -> the node that holds it: what this node's worker runs
                                           and no record knows; its bytes are among those held
    maveriq:allocator:node:<node>:missing  hash: token -> since when the worker's reports leave it out, by `watch`
    maveriq:allocator:node:<node>:drifted  hash: gpu -> how its memory is not as reserved, and since which report
    maveriq:allocator:heard                sorted set: node -> when it last reported, by `watch`; one that was silent
                                           for a day and holds nothing is forgotten, with all its keys
    maveriq:allocator:watch                hash: ticked_at_ms, Redis' clock; listened_ms: how long allocators listened
    maveriq:allocator:said:lost:<token>    the sweep or report that showed its loss; there for a while after it was told
    maveriq:allocator:said:late:<token>    there for a while after it was told to stop
    maveriq:allocator:tenant:<tenant>      hash: deployment -> bytes and GPUs that it holds
    maveriq:allocator:holds                hash: hold -> where it is (`holds.Place`)
    maveriq:allocator:holds:ends           sorted set: hold -> when it ends unless asked for again, ms by Redis' clock
    maveriq:allocator:deployment:<id>      hash: version; record (`record.Record`); plan (`PlanComputed`); copy:
                                           rounds and mark of its latest copy on the broker
    maveriq:allocator:line                 sorted set: deployment -> its place among those that wait for memory
    maveriq:allocator:line:claim           hash: GPUs kept for one that waited long (`waiting.Claim`)
    maveriq:allocator:line:news            how often memory came back; line:survey: there while somebody looks who fits
    maveriq:allocator:lesson:<candidate>   what failures for memory taught (`teaching.Lesson`)
    maveriq:allocator:defragmentation:<id> its moves, and how many are done (`DefragmentationProgressed`)
    maveriq:allocator:holds:wanted         there while calibrations are to give back what they hold
    maveriq:allocator:holds:wanted:<deployment>   how often it asked for that

A node's two hashes are all that a reservation on it looks at: nothing scans the cluster. What is free is always the
limit - sum(held); the sum is kept beside it by the scripts that change it, and derived anew with each report. A
deployment's version grows with each change, and `commit.lua` changes record and held bytes together or not at all. A
token is <deployment>.<replica>.<number>.
"""

from functools import lru_cache
from uuid import UUID

CHANGES = "maveriq:allocator:changes"
HOLDS = "maveriq:allocator:holds"
HOLD_ENDS = "maveriq:allocator:holds:ends"
WANTED = "maveriq:allocator:holds:wanted"
HEARD = "maveriq:allocator:heard"
WATCH = "maveriq:allocator:watch"
LINE = "maveriq:allocator:line"
CLAIM = "maveriq:allocator:line:claim"
LINE_NEWS = "maveriq:allocator:line:news"
LINE_SURVEY = "maveriq:allocator:line:survey"


def node(name: str) -> str:
    return f"maveriq:allocator:node:{name}"


def held(name: str) -> str:
    return f"maveriq:allocator:node:{name}:held"


def strange(name: str) -> str:
    return f"maveriq:allocator:node:{name}:strange"


def missing(name: str) -> str:
    return f"maveriq:allocator:node:{name}:missing"


def drifted(name: str) -> str:
    return f"maveriq:allocator:node:{name}:drifted"


def limit(gpu: str) -> str:
    """Field of a node's hash."""
    return f"limit|{gpu}"


def version(gpu: str) -> str:
    """Field of a node's hash."""
    return f"version|{gpu}"


def said(token: str, what: str) -> str:
    return f"maveriq:allocator:said:{what}:{token}"


def tenant(name: str) -> str:
    return f"maveriq:allocator:tenant:{name}"


def deployment(deployment_id: UUID | str) -> str:
    return f"maveriq:allocator:deployment:{deployment_id}"


def defragmentation(defragmentation_id: UUID) -> str:
    return f"maveriq:allocator:defragmentation:{defragmentation_id}"


def lesson(candidate: str) -> str:
    """Args:
    candidate: what alike candidates have in common.
    """
    return f"maveriq:allocator:lesson:{candidate}"


def holding(gpu: str, token: str) -> str:
    """Field of a node's `held` hash."""
    return f"{gpu}|{token}"


def hold(gpu: str, hold_id: UUID) -> str:
    """Field of a node's `held` hash."""
    return f"{gpu}|{hold_id}/hold"


def parse_holding(field: str) -> tuple[str, UUID, int | None]:
    """The GPU, deployment and replica of a field; of a calibration's the GPU, the hold and None."""
    gpu, _, holder = field.rpartition("|")
    if holder.endswith("/hold"):
        return gpu, UUID(holder.removesuffix("/hold")), None
    return gpu, *parse_token(holder)


@lru_cache(maxsize=100_000)  # the same ones with every look at their node
def parse_token(token: str) -> tuple[UUID, int]:
    """The deployment and replica of a reservation."""
    deployment_id, replica, _ = token.split(".")
    return UUID(deployment_id), int(replica)
