"""`maveriq up`: the cluster in the foreground, until Ctrl-C."""

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from maveriq.cli.cluster import Cluster, running_cluster
from maveriq.cli.figures import MIB
from maveriq.logs import configure
from maveriq.running import tell_misspelt


def run_up(console: Console | None, given: Mapping[str, str], only: Sequence[str]) -> None:
    """Serve until SIGINT or SIGTERM; nothing is left running.

    Args:
        console: None tells in JSON, once it is ready, where.
        given: environment variables by option, over those that are set.

    Raises:
        CommandFailed: a service is missing, or stopped by itself.
    """
    env = {**os.environ, **given}
    if not env.get("MAVERIQ_DEVICES") and (not only or "worker" in only):
        env["MAVERIQ_DEVICES"] = default_devices()
        if console is not None:
            console.print(f"[dim]devices: {env['MAVERIQ_DEVICES']} (--devices chooses others)[/]")
    configure("up")
    tell_misspelt(env)
    asyncio.run(_serve(console, env, only))


def default_devices() -> str:
    """This machine's GPUs, or half of its free memory as one CPU device where it has none."""
    if Path("/proc/driver/nvidia/version").exists():
        return "nvml"
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"cpu:0={int(free_bytes / 2 / MIB)}MiB"


async def _serve(console: Console | None, env: Mapping[str, str], only: Sequence[str]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with running_cluster(env, only) as cluster:
        serving = asyncio.create_task(_until_failed(console, cluster))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not serving.done():
            if console is not None:
                console.print("[dim]stopping ...[/]")
            serving.cancel()
        else:
            serving.result()


async def _until_failed(console: Console | None, cluster: Cluster) -> None:
    await cluster.wait_ready()
    url = cluster.url if "ingress" in cluster.names else None
    if console is None:
        print(json.dumps({"url": url, "services": cluster.names}), flush=True)
    else:
        what = f"ready at [bold]{url}[/]" if url else f"{', '.join(cluster.names)} started"
        console.print(f"[green]✓[/] {what}; Ctrl-C stops it")
    raise await cluster.wait_failed()
