"""Which trace a message or an HTTP request belongs to. Pure: W3C Trace Context's headers in, a trace out, and back.

https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"  # headers of HTTP, and of AMQP
MAX_STATE_CHARS, MAX_STATE_MEMBERS = 512, 32  # what everybody must pass on, and may send
SAMPLED = 0x01
_KNOWN_FLAGS = SAMPLED | 0x02  # and: the id is random

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(r"([a-z0-9][a-z0-9_*/@-]{0,255})=[ -+\--<>-~]{0,255}[!-+\--<>-~]")


@dataclass(frozen=True, slots=True)
class Trace:
    """A place in a trace: what is caused there goes on from it."""

    trace_id: str
    """32 hexadecimal digits."""
    parent_id: str
    """16: the span that what is caused there belongs under."""
    flags: int = SAMPLED
    state: str = ""
    """Of others' tracing systems, passed on as it came."""
    is_new: bool = False
    """It begins here: its parent is no span of anybody's."""

    def headers(self) -> dict[str, str]:
        parent = f"00-{self.trace_id}-{self.parent_id}-{self.flags:02x}"
        return {TRACEPARENT: parent, TRACESTATE: self.state} if self.state else {TRACEPARENT: parent}


def received(headers: Mapping[str, object]) -> Trace | None:
    """None: there is no trace in them, or a malformed one, which counts as none."""
    given = headers.get(TRACEPARENT)
    found = _PARENT.fullmatch(given) if isinstance(given, str) else None
    if found is None or (found[1] == "00" and found[5]):  # later versions may say more
        return None
    return Trace(found[2], found[3], int(found[4], 16) & _KNOWN_FLAGS, _state(headers.get(TRACESTATE)))


def begun(id: UUID) -> Trace:
    """A new trace, of one id always the same: so that the retries of a message are in one.

    Hashed, because samplers go by a trace id's low bits, and some of a UUID's are fixed.
    """
    digits = blake2b(id.bytes, digest_size=24).hexdigest()
    return Trace(digits[:32], digits[32:], is_new=True)


def _state(given: object) -> str:
    """Empty: none, or a malformed one. What is too long loses its end, which is the oldest."""
    members = [member.strip(" \t") for member in given.split(",")] if isinstance(given, str) else []
    members = [member for member in members if member]
    matched = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in matched if match is not None}
    if len(keys) < len(members) or len(members) > MAX_STATE_MEMBERS:
        return ""
    while len(state := ",".join(members)) > MAX_STATE_CHARS:
        members.pop()
    return state
