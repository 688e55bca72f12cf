"""Runs one service as a process: environment, broker, logs, signals. `maveriq up` runs the same side by side."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping

from maveriq.bus import Bus, connect
from maveriq.logs import configure
from maveriq.settings import BadSetting, read

Run = Callable[[Bus, Mapping[str, str]], Awaitable[None]]
"""A service: given the bus and the environment, it serves until cancelled and then leaves nothing behind."""

SERVICE_ENTRY_POINTS = "maveriq.services"  # entry-point group under which each service's distribution names its Run


def main(name: str, run: Run) -> None:
    """Serve until SIGTERM or SIGINT; exit 2 with one line on a bad setting."""
    configure(name)
    try:
        asyncio.run(_serve(run, os.environ))
    except BadSetting as error:
        print(f"maveriq {name}: {error}", file=sys.stderr)
        sys.exit(2)


async def _serve(run: Run, env: Mapping[str, str]) -> None:
    bus = await connect(read(env, "MAVERIQ_AMQP_URL", str))
    serving = asyncio.ensure_future(run(bus, env))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        pass
    finally:
        await bus.close()
