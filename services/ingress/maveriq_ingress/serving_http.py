"""Runs the HTTP server within a loop that others share: no signal handlers, a port taken before the start."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from maveriq.settings import BadSetting
from maveriq_ingress.settings import HTTP_PORT, Settings

GOODBYE_S = 3  # that answers under way get when the service stops


class Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals belong to the process, which may run other services."""
        yield


def listen(settings: Settings) -> socket.socket:
    """Raises BadSetting where the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((settings.http_host, settings.http_port))
        taken.listen(2048)
    except OSError as error:
        taken.close()
        raise BadSetting(
            f"{HTTP_PORT}={settings.http_port}: cannot listen on {settings.http_host}: {error.strerror}; "
            "choose a free port, or 0 for any"
        ) from error
    return taken


async def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until cancelled, then finish what is under way, for GOODBYE_S at most."""
    server = Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            log_level="critical",  # what goes wrong is logged where it is answered
            access_log=False,
            timeout_graceful_shutdown=GOODBYE_S,
            ws="none",
        )
    )
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await serving
