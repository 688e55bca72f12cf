"""Wires the profiler and runs it: `python -m maveriq_profiler`."""

from collections.abc import Mapping
from typing import Any, cast

import structlog
from redis.asyncio import Redis

from maveriq import running
from maveriq.bus import Bus, Handler
from maveriq.contracts import IntentAccepted
from maveriq.topology import PROFILER
from maveriq_profiler.catalog import Catalog
from maveriq_profiler.handlers import Handlers
from maveriq_profiler.measuring import ChildProbe
from maveriq_profiler.rig import find_rig
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
        handlers = Handlers(probe, Catalog(redis))
        await bus.run(PROFILER, [Handler(IntentAccepted, handlers.on_intent_accepted)])
    finally:
        await redis.aclose()


def main() -> None:
    running.main("profiler", run)


if __name__ == "__main__":
    main()
