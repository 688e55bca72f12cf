"""Which deployments are served as predicted. Kept in Redis while they are served.

Keys, below `maveriq:profiler:`:
deployment-planned:<id>   FingerprintMeasured, as JSON: what its plan rests on, so that it can be planned for again
deployment-missed:<id>    hash: node -> reports in a row that lay outside the predicted interval
"""

from typing import Any
from uuid import UUID

from maveriq.contracts import FingerprintMeasured, PredictionMissed, ServiceTimed
from maveriq_profiler.folding import miss

IN_A_ROW = 3  # one report may be of a bad moment
_KEEP_S = 7 * 24 * 3600  # after its last report: one that is not served that long is planned for again by its producer


class Watching:
    def __init__(self, redis: Any) -> None:
        self._redis = redis

    async def remember(self, measured: FingerprintMeasured) -> None:
        """What a deployment is planned from. It is judged by this, however the calibration changes later."""
        await self._redis.set(_planned(measured.deployment_id), measured.model_dump_json(), ex=_KEEP_S)
        await self._redis.delete(_missed(measured.deployment_id))

    async def planned(self, deployment_id: UUID) -> FingerprintMeasured | None:
        text = await self._redis.getex(_planned(deployment_id), ex=_KEEP_S)
        return None if text is None else FingerprintMeasured.model_validate_json(text)

    async def judge(self, planned: FingerprintMeasured, report: ServiceTimed) -> PredictionMissed | None:
        """A miss that lasts; told once, until a report is as predicted again."""
        on = (report.engine, report.gpu_types[0])
        calibration = next((one for one in planned.calibrations if (one.engine, one.gpu_type) == on), None)
        missed = None if calibration is None else miss(report, calibration)
        key = _missed(report.deployment_id)
        if missed is None:
            await self._redis.hdel(key, report.node)
            return None
        in_a_row = await self._redis.hincrby(key, report.node, 1)
        await self._redis.expire(key, _KEEP_S)
        return missed if in_a_row == IN_A_ROW else None


def _planned(deployment_id: UUID) -> str:
    return f"maveriq:profiler:deployment-planned:{deployment_id}"


def _missed(deployment_id: UUID) -> str:
    return f"maveriq:profiler:deployment-missed:{deployment_id}"
