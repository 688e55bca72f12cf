"""Answers `GET /healthz`, `/readyz` and `/metrics` of a service: as much of HTTP as probes and Prometheus ask for."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus

from maveriq.bus import Bus
from maveriq.settings import BadSetting, read, whole

PORT = "MAVERIQ_HEALTH_PORT"
ANSWER_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 8192


@asynccontextmanager
async def health(bus: Bus, env: Mapping[str, str]) -> AsyncGenerator[None]:
    """Answer while the block runs, where MAVERIQ_HEALTH_PORT names a port. Raises BadSetting."""
    port, host = read(env, PORT, whole(1, 65_535), 0), read(env, "MAVERIQ_HTTP_HOST", str, "127.0.0.1")
    if port == 0:
        yield
        return
    try:
        server = await asyncio.start_server(partial(_answer, bus), host, port, limit=MAX_REQUEST_BYTES)
    except OSError as error:
        raise BadSetting(f"{PORT}={port}: cannot listen on {host}: {error.strerror}; choose a free port") from error
    async with server:
        yield


def state_of(path: str, *, connected: bool) -> tuple[HTTPStatus, dict[str, str]]:
    """What a probe is told. Alive: this process answers; ready: the broker answers it too."""
    if path == "/healthz":
        return HTTPStatus.OK, {"status": "alive"}
    if path != "/readyz":
        return HTTPStatus.NOT_FOUND, {"status": "ask GET /healthz, GET /readyz or GET /metrics"}
    if connected:
        return HTTPStatus.OK, {"status": "ready", "broker": "connected"}
    return HTTPStatus.SERVICE_UNAVAILABLE, {"status": "not ready", "broker": "unreachable"}


def metrics() -> tuple[str, bytes] | None:
    """Content type and text of what this process tells Prometheus; None where its library is not installed."""
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    except ImportError:  # a producer's package needs none; services bring it
        return None
    return CONTENT_TYPE_LATEST, generate_latest()


async def _answer(bus: Bus, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            asked = await reader.readuntil(b"\r\n\r\n")
            path = asked.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1") if asked.startswith(b"GET ") else ""
            told = metrics() if path == "/metrics" else None
            if told is None:
                status, state = state_of(path, connected=bus.connected)
                told = "application/json", json.dumps(state).encode()
            else:
                status = HTTPStatus.OK
            content_type, body = told
            head = f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: {content_type}\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            await writer.drain()
    writer.close()
