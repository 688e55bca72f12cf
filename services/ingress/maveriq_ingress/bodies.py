"""HTTP request bodies and parameters, read within bounds; what is wrong with them is named."""

from typing import TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from maveriq.contracts import Fault, faults
from maveriq.topology import MAX_DEADLINE_S
from maveriq_ingress.errors import HttpError, refused

MAX_BODY_BYTES = 8 * 1024 * 1024  # about two million tokens of text
DEADLINE_HEADER = "X-Request-Timeout-S"
JSON = "application/json"

T = TypeVar("T", bound=BaseModel)


async def read_body(request: Request) -> bytes:
    """Raises HttpError: 413 once it is larger than MAX_BODY_BYTES; 415 where a web page of any site may have sent it.

    A browser sends what calls itself text or a form wherever any page tells it to, and asks nobody; what calls itself
    JSON it sends to its page's own site alone, since we never say that others may.
    """
    if "origin" in request.headers and not request.headers.get("content-type", "").startswith(JSON):
        fault = Fault(field="Content-Type", problem=f"a web page must send {JSON}", remedy="set that header")
        raise refused(fault, status=415)
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise _too_large()
    except ClientDisconnect as gone:
        raise refused(
            Fault(field="", problem="the connection closed before the body was complete", remedy="send it again")
        ) from gone
    return bytes(body)


def _too_large() -> HttpError:
    fault = Fault(field="", problem=f"more than {MAX_BODY_BYTES // 2**20} MiB", remedy="send a shorter prompt")
    return refused(fault, status=413, code="request_too_large")


def parse(body: bytes, known: type[T]) -> T:
    """A JSON body as an instance of `known`. Raises HttpError (400) naming each field at fault."""
    try:
        return known.model_validate_json(body)
    except ValidationError as error:
        raise refused(*faults(error, known)) from error


def flag(request: Request, name: str) -> bool:
    """A yes-or-no query parameter, no where it is missing. Raises HttpError (400)."""
    text = request.query_params.get(name, "false").lower()
    if text in ("true", "1"):
        return True
    if text in ("false", "0"):
        return False
    raise refused(Fault(field=name, problem=f"{text!r} is neither true nor false", remedy=f"give {name}=true"))


def identity(text: str, field: str = "deployment_id") -> UUID:
    """A deployment's id from a path or header. Raises HttpError (400)."""
    try:
        return UUID(text)
    except ValueError:
        raise refused(
            Fault(
                field=field,
                problem=f"{text!r} is not a UUID",
                remedy="send a UUID, e.g. 7d444840-9dc0-11d1-b245-5ffdce74fad2",
            )
        ) from None


def deadline_s(request: Request) -> float:
    """Seconds that the whole answer may take, from the header or ?timeout=. Raises HttpError (400)."""
    text = request.headers.get(DEADLINE_HEADER) or request.query_params.get("timeout")
    if text is None:
        return MAX_DEADLINE_S
    try:
        wanted_s = float(text)
    except ValueError:
        wanted_s = 0.0
    if not 0 < wanted_s <= MAX_DEADLINE_S:  # false for nan too
        raise refused(
            Fault(
                field="timeout",
                problem=f"{text!r} is not a number of seconds above 0 and up to {MAX_DEADLINE_S:g}",
                remedy=f"send {DEADLINE_HEADER}: 60, or ?timeout=60",
            )
        )
    return wanted_s
