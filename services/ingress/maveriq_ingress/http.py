"""The HTTP side of ingress: all endpoints, health, and every failure as an error body."""

import asyncio
from collections.abc import Sequence
from difflib import get_close_matches
from http import HTTPStatus

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Endpoint

from maveriq.bus import Bus, QueueFull, Unavailable, Unroutable
from maveriq_ingress.errors import HttpError, unavailable
from maveriq_ingress.event_stream import ReaderGone

PING_TIMEOUT_S = 2.0

log = structlog.get_logger()


def app(endpoints: Sequence[Endpoint], bus: Bus, redis: Redis) -> Starlette:
    async def alive(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        parts = {"broker": bus.connected, "store": await _answers(redis)}
        good = all(parts.values())
        words = {name: "connected" if up else "unreachable" for name, up in parts.items()}
        return JSONResponse({"status": "ready" if good else "not ready", **words}, 200 if good else 503)

    health = [Endpoint("/healthz", alive), Endpoint("/readyz", ready)]
    return Starlette(
        routes=[*endpoints, *health],
        exception_handlers={
            HttpError: _answer,
            HTTPException: _of_routing,
            ReaderGone: _to_nobody,
            Unavailable: _no_broker,
            QueueFull: _overloaded,
            Unroutable: _nobody_listens,
            RedisError: _no_store,
            500: _broken,
        },
    )


async def _answers(redis: Redis) -> bool:
    try:
        async with asyncio.timeout(PING_TIMEOUT_S):
            await redis.ping()  # pyright: ignore[reportUnknownMemberType]
    except (RedisError, TimeoutError, OSError):
        return False
    return True


def _respond(error: HttpError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return _respond(error)


async def _of_routing(request: Request, error: Exception) -> Response:
    """No such path, or another method."""
    assert isinstance(error, HTTPException)
    known = [route.path for route in request.app.routes if isinstance(route, Endpoint)]
    what = f"{request.method} {request.url.path} is not served here"
    if error.status_code == HTTPStatus.NOT_FOUND:
        code, remedy = "unknown_url", _path_instead(request.url.path, known)
    else:
        code, remedy = "method_not_allowed", f"send {(error.headers or {}).get('Allow', 'another method')}"
    return _respond(
        HttpError(error.status_code, f"{what}; {remedy}", "invalid_request_error", code, headers=error.headers)
    )


def _path_instead(path: str, known: Sequence[str]) -> str:
    """The commonest mistakes: a client whose address lacks /v1, or has it twice, and a typo."""
    meant = "/v1/" + path.strip("/").removeprefix("v1/").removeprefix("v1/")
    close = [meant] if meant in known else get_close_matches(path, known, n=1, cutoff=0.8)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted({*known}))}"


async def _to_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's number for a client that left; it is only seen in tests


async def _no_broker(request: Request, error: Exception) -> Response:
    return _respond(unavailable("the broker does not answer", "send it again in a moment", "broker_unavailable"))


async def _overloaded(request: Request, error: Exception) -> Response:
    return _respond(unavailable("the broker's queue is full", "send it again in a moment", "queue_full"))


async def _nobody_listens(request: Request, error: Exception) -> Response:
    problem = f"no service takes this message yet ({error})"
    return _respond(unavailable(problem, "start all services, then send it again", "service_missing"))


async def _no_store(request: Request, error: Exception) -> Response:
    log.warning("store failed", error=str(error))
    return _respond(unavailable("the store does not answer", "send it again in a moment", "store_unavailable"))


async def _broken(request: Request, error: Exception) -> Response:
    log.error("request failed", path=request.url.path, exc_info=error)
    message = "an error of ours, and logged as such; send the request again, or report it"
    return _respond(HttpError(500, message, "server_error", "internal_error"))
