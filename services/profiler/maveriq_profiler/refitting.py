"""Fits a pool's constants to all its samples, and keeps them as its calibration."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from maveriq.contracts import Calibration
from maveriq_profiler.calibration import TooLittle, fit
from maveriq_profiler.pool import Pool
from maveriq_profiler.samples import Samples

log = structlog.get_logger()

REFIT_S = 60.0  # served times come every few seconds, and change little
LEAST_PASSES = 8  # of a kind that is served: the first after a start are slow
_TRIES = 3  # another profiler may keep its fit first


@dataclass(frozen=True, slots=True)
class Refitting:
    samples: Samples
    now: Callable[[], datetime]

    async def sharpen(self, pool: Pool, *, every_s: float = REFIT_S) -> Calibration | None:
        """Fit anew, at most once in so long; None: it was not time, or the GPU type was never calibrated.

        Fingerprints and served times sharpen a calibration. They make none: of one model or two, chosen by chance,
        nobody knows how far they reach.
        """
        if await self.samples.calibration(pool) is None or not await self.samples.may_refit(pool, every_s):
            return None
        return await self.fit(pool)

    async def fit(self, pool: Pool) -> Calibration | None:
        """Fit now; None where there is too little to fit to."""
        for _ in range(_TRIES):
            before = await self.samples.calibration(pool)
            outcomes = (await self.samples.outcomes(pool)).values()
            served = (await self.samples.served(pool)).values()
            everything = [s for outcome in outcomes for s in outcome.samples] + [
                one.sample for one in served if one.count >= LEAST_PASSES
            ]
            try:
                fitted = await asyncio.to_thread(
                    fit,
                    everything,
                    engine=pool.engine,
                    engine_version=pool.engine_version,
                    gpu_type=pool.gpu_type,
                    max_pp=pool.max_pp,
                    version=1 if before is None else before.version + 1,
                    fitted_at=self.now(),
                    cost_s=sum(outcome.cost_s for outcome in outcomes),
                )
            except TooLittle as error:
                log.info("not calibrated", pool=pool.name, error=str(error))
                return None
            if await self.samples.keep_calibration(pool, fitted):
                log.info("calibrated", pool=pool.name, version=fitted.version, num_models=fitted.scope.num_models,
                         residual=round(fitted.latency_residuals.median, 4))  # fmt: skip
                return fitted
        return None
