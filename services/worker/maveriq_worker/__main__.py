"""The worker's wiring."""

import asyncio
import os
from collections.abc import Callable, Mapping

from maveriq.bus import Bus
from maveriq.running import main as run_service
from maveriq.running import side_by_side
from maveriq.topology import WORKER
from maveriq_worker.devices import Devices, find_devices
from maveriq_worker.engine import Engine
from maveriq_worker.engines import engine_factory
from maveriq_worker.fleet import Fleet
from maveriq_worker.handlers import Handlers
from maveriq_worker.metrics import exported
from maveriq_worker.reporting import Reporting
from maveriq_worker.settings import Settings


async def run(bus: Bus, env: Mapping[str, str]) -> None:
    """Serve until cancelled. Raises BadSetting."""
    settings = Settings.from_env(env)
    new_engine = engine_factory(settings.engine)
    await serve(bus, settings, find_devices(settings), new_engine)


async def serve(bus: Bus, settings: Settings, devices: Devices, new_engine: Callable[[], Engine]) -> None:
    """Serve until cancelled; what is in hand then goes back to its queues, and no process stays."""
    fleet = Fleet(bus, devices, new_engine, settings.engine, settings.cache_dir, settings.threads_per_stage)

    listening = asyncio.Event()

    async def report_once_listening() -> None:
        # before, a placement for this node would reach ingress's queue alone, and nobody would miss ours
        await listening.wait()
        await Reporting(bus, settings.node, settings.engine, fleet.gpus, fleet.running, fleet.timed).run(
            settings.report_s
        )

    try:
        with exported(fleet.replicas):
            await side_by_side(
                bus.run(WORKER, Handlers(fleet).all(), node=settings.node, ready=listening.set),
                report_once_listening(),
            )
    finally:
        await fleet.stop()


def main() -> None:
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # ordinals then mean what NVML means by them
    run_service("worker", run)


if __name__ == "__main__":
    main()
