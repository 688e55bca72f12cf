"""Which deployments are asked otherwise than planned, and for how long. Kept in Redis while they are served.

Keys, below `maveriq:profiler:`:
deployment-traffic:<id>    hash: "row,column" of the workload's histogram -> requests served; since: seconds
deployment-drifted:<id>    stretches in a row that drifted
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from maveriq.contracts import FingerprintMeasured, ServiceTimed, TrafficDrifted
from maveriq_profiler.traffic import Bucket, bucket_of, drift, is_calm

STRETCH_S = 600.0  # that is judged as one: a burst is shorter
IN_A_ROW = 3
_KEEP_S = 24 * 3600
_SINCE = "since"


class TrafficWatch:
    def __init__(self, redis: Any, now: Callable[[], datetime], stretch_s: float = STRETCH_S) -> None:
        self._redis = redis
        self._now = now
        self._stretch_s = stretch_s

    async def judge(self, planned: FingerprintMeasured, report: ServiceTimed) -> TrafficDrifted | None:
        """A drift that lasts; told once, until a stretch is as planned again. Of no workload without sizes."""
        workload = planned.admission.intent.workload
        histogram = workload.histogram
        if histogram is None or not report.requests:
            return None
        now, key = self._now().timestamp(), f"maveriq:profiler:deployment-traffic:{report.deployment_id}"
        await self._redis.hsetnx(key, _SINCE, now)
        for each in report.requests:
            row, column = bucket_of(each, histogram)
            await self._redis.hincrby(key, f"{row},{column}", each.count)
        await self._redis.expire(key, _KEEP_S)
        over_s = now - float(await self._redis.hget(key, _SINCE) or now)
        if over_s < self._stretch_s:
            return None
        counts = _counts(await self._redis.hgetall(key))
        if not await self._redis.delete(key):
            return None  # another profiler judges it
        drifted = drift(report.deployment_id, workload, histogram, counts, over_s)
        if drifted is None:
            if is_calm(workload, histogram, counts, over_s):
                await self._redis.delete(_drifted(report.deployment_id))
            return None
        in_a_row = await self._redis.incr(_drifted(report.deployment_id))
        await self._redis.expire(_drifted(report.deployment_id), _KEEP_S)
        return drifted if in_a_row == IN_A_ROW else None


def _counts(kept: dict[bytes, bytes]) -> dict[Bucket, int]:
    found: dict[Bucket, int] = {}
    for name, count in kept.items():
        if name != _SINCE.encode():
            row, column = name.split(b",")
            found[int(row), int(column)] = int(count)
    return found


def _drifted(deployment_id: UUID) -> str:
    return f"maveriq:profiler:deployment-drifted:{deployment_id}"
