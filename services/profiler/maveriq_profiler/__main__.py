"""Wires the profiler and runs it: `python -m maveriq_profiler`."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import structlog
from redis.asyncio import Redis

from maveriq import running
from maveriq.bus import Bus, Handler, publish_until_kept
from maveriq.contracts import (
    FULL_PRECISIONS,
    CalibrationRequested,
    IntentAccepted,
    MeasurementRequested,
    MemoryHeld,
    Message,
    Precision,
    ServiceTimed,
)
from maveriq.topology import PROFILER
from maveriq_profiler.accuracy_handlers import AccuracyHandlers
from maveriq_profiler.accuracy_measuring import AccuracyMeasuring, free_host_bytes
from maveriq_profiler.borrowing import Borrowing
from maveriq_profiler.calibrating import Calibrating
from maveriq_profiler.catalog import Catalog
from maveriq_profiler.children import Children
from maveriq_profiler.devices import devices_of
from maveriq_profiler.handlers import Handlers
from maveriq_profiler.kept_readings import KeptReadings
from maveriq_profiler.learning import Learning
from maveriq_profiler.measuring import ChildProbe, Probe, Rig
from maveriq_profiler.neighbours import anyone_on
from maveriq_profiler.pool import Pool
from maveriq_profiler.programme import Item, programme
from maveriq_profiler.refitting import Refitting
from maveriq_profiler.remeasuring import Remeasuring
from maveriq_profiler.rig import find_rig
from maveriq_profiler.rig_seen import RigSeen
from maveriq_profiler.rigs import Rigs
from maveriq_profiler.samples import Samples
from maveriq_profiler.settings import Settings
from maveriq_profiler.starts import Starts
from maveriq_profiler.traffic_watch import TrafficWatch
from maveriq_profiler.watching import Watching


async def run(bus: Bus, env: Mapping[str, str]) -> None:
    import pynvml

    settings = Settings.from_env(env)
    rig = find_rig(settings, pynvml)
    structlog.get_logger().info(
        "profiler measures", gpu_type=rig.gpu_type, engine=rig.engine, version=rig.engine_version
    )
    redis: Any = cast(Any, Redis).from_url(settings.redis_url)
    children = Children(rig.threads, engine=rig.engine)
    probe = ChildProbe(rig, settings.limits(cuda=rig.device != "cpu"), children, KeptReadings(redis))
    ready = asyncio.Event()
    try:
        handlers = wire(redis, partial(publish_until_kept, bus), probe, settings, devices_of(rig, pynvml))
        if rig.device == "cpu":  # starts and measurements take each other's time there
            await Starts(handlers.calibrating.preemption, rig.gpu_type).open(bus)

        async def calibrate() -> None:
            await ready.wait()
            if await handlers.calibrating.is_new():  # its calibration, or a first intent, is not to wait for imports
                await children.get_ready()
            await handlers.calibrating.serve(at_start=settings.calibrates)

        await running.side_by_side(
            bus.run(PROFILER, bound(handlers, children), node=rig.name, ready=ready.set),
            handlers.rigs.keep_saying(seen(rig)),
            calibrate(),
        )
    finally:
        await children.close()
        await redis.aclose()


def wire(
    redis: Any, publish: Callable[[Message], Awaitable[None]], probe: Probe, settings: Settings,
    devices: Mapping[str, str],
) -> Handlers:  # fmt: skip
    rig, rigs, samples = probe.rig, Rigs(redis), Samples(redis)
    refitting = Refitting(samples, _now)
    borrowing = Borrowing(redis, publish, rig, devices)
    catalog, pool = Catalog(redis), Pool(rig.engine, rig.engine_version, rig.gpu_type, rig.max_pp)

    def plan(free_bytes: int, quantised: Collection[Precision]) -> tuple[Item, ...]:
        return whole_programme(rig, free_bytes, borrowing.num_gpus, quantised)

    used = anyone_on(",".join(devices.values()) or rig.device)
    remeasuring = Remeasuring(redis, pool, probe, used, catalog, samples, borrowing, refitting, publish, plan)
    calibrating = Calibrating(
        rig=rig,
        probe=probe,
        samples=samples,
        borrowing=borrowing,
        refitting=refitting,
        publish=publish,
        plan=plan,
        budget_s=settings.calibration_budget_s,
        idle=remeasuring.one,
    )
    learning = Learning(rigs, samples, refitting, Watching(redis), TrafficWatch(redis, _now), _now)
    return Handlers(probe, catalog, rigs, calibrating, learning, remeasuring, settings.estimator != "maveriq")


def bound(handlers: Handlers, children: Children) -> Sequence[Handler[Any]]:
    rig, calibrating = handlers.probe.rig, handlers.calibrating
    room = None if rig.device == "cpu" else calibrating.borrowing
    accuracy = AccuracyMeasuring(rig, handlers.probe, children, room, free_host_bytes)
    return [
        Handler(IntentAccepted, handlers.on_intent_accepted),
        Handler(MeasurementRequested, handlers.on_measurement_requested),
        Handler(CalibrationRequested, handlers.on_calibration_requested),
        Handler(MemoryHeld, handlers.on_memory_held),
        Handler(ServiceTimed, handlers.on_service_timed),
        *AccuracyHandlers(accuracy, calibrating.publish).all(),
    ]


def whole_programme(
    rig: Rig, free_bytes: int, num_gpus: int, quantised: Collection[Precision] = ()
) -> tuple[Item, ...]:
    """All that could be measured; a run's budget says how far it goes."""
    return programme(
        engine="trtllm" if rig.engine == "trtllm" else "torch",
        on_cpu=rig.device == "cpu",
        free_bytes=free_bytes,
        precisions=[each for each in rig.precisions if each in FULL_PRECISIONS],
        quantised=[each for each in rig.precisions if each in quantised and each not in FULL_PRECISIONS],
        max_pp=rig.max_pp,
        budget_s=float("inf"),
        num_gpus=num_gpus,
    )


def seen(rig: Rig) -> RigSeen:
    return RigSeen(
        name=rig.name,
        engine=rig.engine,
        engine_version=rig.engine_version,
        gpu_type=rig.gpu_type,
        precisions=rig.precisions,
        max_pp=rig.max_pp,
    )


def _now() -> datetime:
    return datetime.now(UTC)


def main() -> None:
    running.main("profiler", run)


if __name__ == "__main__":
    main()
