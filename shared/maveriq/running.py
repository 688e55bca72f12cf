"""Runs one service as a process: environment, broker, logs, signals. `maveriq up` runs the same side by side."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import structlog

from maveriq.agreed_settings import amqp_url
from maveriq.bus import Bus, connect
from maveriq.health import health
from maveriq.logs import configure, tell_end
from maveriq.settings import BadSetting, misspelt
from maveriq.tracing import recording

Run = Callable[[Bus, Mapping[str, str]], Awaitable[None]]
"""A service: given the bus and the environment, it serves until cancelled and then leaves nothing behind."""

PATIENCE_S = 5.0  # longer than a service needs to clean up when its peers answer
SERVICE_ENTRY_POINTS = "maveriq.services"  # entry-point group under which each service's distribution names its Run

log = structlog.get_logger()


def relax_gc() -> None:
    """Seek cycles rarely, and never among what the imports made.

    A stream makes several objects a token; they hold no cycles and go as soon as they are read. Python's defaults
    spend a quarter of a reader's time on looking through them (benchmarks/streaming.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed: tokens take less CPU on it."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop()
    return new_event_loop()


def main(name: str, run: Run) -> None:
    """Serve until SIGTERM or SIGINT; exit 2 with one line on a bad setting."""
    try:
        configure(name)
        sys.excepthook = tell_end
        relax_gc()
        with asyncio.Runner(loop_factory=event_loop) as runner:
            runner.run(_serve(name, run, os.environ))
    except BadSetting as error:
        print(f"maveriq {name}: {error}", file=sys.stderr)
        sys.exit(2)


def tell_misspelt(env: Mapping[str, str]) -> None:
    """Log variables that nobody reads but that are named nearly like one that is."""
    for given, nearest in misspelt(env).items():
        log.warning("setting not known", name=given, nearest=nearest)


async def end(serving: "asyncio.Future[None]", patience_s: float = PATIENCE_S) -> None:
    """Cancel a service and wait until it has cleaned up.

    It is cancelled again where it goes on: in Python 3.11 `asyncio.wait_for`, with which redis-py and aio-pika
    write, swallows a cancellation that comes just as it returns.
    """
    while not serving.done():
        serving.cancel()
        await asyncio.wait({serving}, timeout=patience_s)


async def side_by_side(*serving: Coroutine[Any, Any, None]) -> None:
    """Run them until all have ended, one has failed or this is cancelled; then end the others.

    A task group cancels its tasks once only, and waits for ever for one that swallowed that (see `end`).
    """
    tasks = [asyncio.ensure_future(each) for each in serving]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        ending = asyncio.gather(*(end(task) for task in tasks))
        while not ending.done():
            with suppress(asyncio.CancelledError):  # being told again changes nothing
                await asyncio.wait({ending})
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _serve(name: str, run: Run, env: Mapping[str, str]) -> None:
    tell_misspelt(env)
    async with recording(name, env) as spans:
        await _until_told(run, env, await connect(amqp_url(env), spans))


async def _until_told(run: Run, env: Mapping[str, str], bus: Bus) -> None:
    """Serve until SIGTERM or SIGINT, then close the bus."""
    log.info("service starts")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    serving = asyncio.ensure_future(run(bus, env))
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        async with health(bus, env):
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        await end(serving)
        await bus.close()
        log.info("service stops")
    if not serving.cancelled():
        serving.result()
