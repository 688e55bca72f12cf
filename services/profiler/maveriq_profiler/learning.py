"""What a report of served times changes: the samples, the calibration, and the plan of a deployment that is off it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from maveriq.contracts import CalibrationUpdated, Message, ServiceTimed
from maveriq_profiler.folding import served
from maveriq_profiler.pool import Pool
from maveriq_profiler.refitting import Refitting
from maveriq_profiler.rigs import Rigs
from maveriq_profiler.samples import Samples
from maveriq_profiler.traffic_watch import TrafficWatch
from maveriq_profiler.watching import Watching

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Learning:
    rigs: Rigs
    samples: Samples
    refitting: Refitting
    watching: Watching
    traffic: TrafficWatch
    now: Callable[[], datetime]

    async def learn(self, report: ServiceTimed) -> list[Message]:
        drifted = await self._asked(report)
        pool = await self._pool(report)
        if pool is None or not report.times:
            return drifted
        await self.samples.fold_in(pool, served(report, self.now()))
        fitted = await self.refitting.sharpen(pool)
        replan = await self._judge(report, pool)
        updated: list[Message] = [] if fitted is None else [CalibrationUpdated(calibration=fitted)]
        return updated + replan + drifted

    async def _asked(self, report: ServiceTimed) -> list[Message]:
        """Whether requests still come as planned."""
        planned = await self.watching.planned(report.deployment_id)
        drifted = None if planned is None else await self.traffic.judge(planned, report)
        if drifted is None:
            return []
        log.warning("traffic drifted", planned_per_s=drifted.planned_per_s, moved=round(drifted.moved, 3),
                    served_per_s=round(drifted.served.request_rate_per_s, 3))  # fmt: skip
        return [drifted]

    async def _pool(self, report: ServiceTimed) -> Pool | None:
        """None: its stages sit on several GPU types, so their times speak of none; or no profiler knows the type, or
        none the engine's version.
        """
        if len(set(report.gpu_types)) > 1:
            return None
        present = [Pool(rig.engine, rig.engine_version, rig.gpu_type, rig.max_pp) for rig in await self.rigs.present()]
        known = [Pool.of(one) for one in await self.samples.calibrations()]
        return next((pool for pool in present + known if _ran_on(pool, report)), None)

    async def _judge(self, report: ServiceTimed, pool: Pool) -> list[Message]:
        planned = await self.watching.planned(report.deployment_id)
        missed = None if planned is None else await self.watching.judge(planned, report)
        if planned is None or missed is None:
            return []
        log.warning("prediction missed", what=missed.what, batch=missed.batch, measured_ms=round(missed.measured_ms, 2),
                    predicted_ms=round(missed.predicted_ms, 2))  # fmt: skip
        fitted = await self.refitting.fit(pool)  # the new plan is to know what was seen
        again = planned.model_copy(update={"calibrations": await self.samples.calibrations()})
        await self.watching.remember(again)
        return [missed, again] if fitted is None else [CalibrationUpdated(calibration=fitted), missed, again]


def _ran_on(pool: Pool, report: ServiceTimed) -> bool:
    """A worker of another engine version than the pool's tells nothing of it; one that does not say its is believed."""
    version = report.engine_version or pool.engine_version
    return (pool.engine, pool.engine_version, pool.gpu_type) == (report.engine, version, report.gpu_types[0])
