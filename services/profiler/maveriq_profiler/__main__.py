"""Wires the profiler and runs it: `python -m maveriq_profiler`."""

from collections.abc import Mapping
from typing import Any, cast

import structlog
from redis.asyncio import Redis

from maveriq import running
from maveriq.bus import Bus, Handler
from maveriq.contracts import IntentAccepted, MeasurementRequested
from maveriq.topology import PROFILER
from maveriq_profiler.catalog import Catalog
from maveriq_profiler.handlers import Handlers
from maveriq_profiler.measuring import ChildProbe, Rig
from maveriq_profiler.rig import find_rig
from maveriq_profiler.rigs import Rigs, RigSeen
from maveriq_profiler.settings import Settings


async def run(bus: Bus, env: Mapping[str, str]) -> None:
    import pynvml

    settings = Settings.from_env(env)
    rig = find_rig(settings, pynvml)
    structlog.get_logger().info(
        "profiler measures", gpu_type=rig.gpu_type, engine=rig.engine, version=rig.engine_version
    )
    redis: Any = cast(Any, Redis).from_url(settings.redis_url)
    probe = ChildProbe(rig, settings.limits(cuda=rig.device != "cpu"))
    try:
        rigs = Rigs(redis)
        handlers = Handlers(probe, Catalog(redis), rigs)
        serving = bus.run(
            PROFILER,
            [
                Handler(IntentAccepted, handlers.on_intent_accepted),
                Handler(MeasurementRequested, handlers.on_measurement_requested),
            ],
            node=rig.name,
        )
        await running.side_by_side(serving, rigs.keep_saying(seen(rig)))
    finally:
        await redis.aclose()


def seen(rig: Rig) -> RigSeen:
    return RigSeen(
        name=rig.name,
        engine=rig.engine,
        engine_version=rig.engine_version,
        gpu_type=rig.gpu_type,
        precisions=rig.precisions,
    )


def main() -> None:
    running.main("profiler", run)


if __name__ == "__main__":
    main()
