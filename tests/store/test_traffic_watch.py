"""A deployment that is asked otherwise than planned is told of once that lasts, once, and again only after a calm."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from redis.asyncio import Redis

from maveriq.contracts import (
    Admission,
    FingerprintMeasured,
    Histogram,
    Precision,
    ServedRequests,
    ServiceTimed,
    Workload,
)
from maveriq_profiler.traffic_watch import IN_A_ROW, TrafficWatch
from tests.fakes import ADMISSION, FACTS, FINGERPRINT

ID = UUID(int=5)
SIZES = Histogram(input_edges=(100, 1000), output_edges=(50,), distribution=((0.75,), (0.25,)), request_rate_per_s=2.0)
WORKLOAD = Workload(histogram=SIZES)
OVER_S = 600.0


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as connection:  # as the service connects
        yield connection


def report(short: int, long: int) -> ServiceTimed:
    kinds = ((20, 10, short), (400, 30, long))
    return ServiceTimed(
        deployment_id=ID, node="n", engine="torch", gpu_types=("cpu-1t",), facts=FACTS, precision=Precision.FP32,
        kv_precision=Precision.FP32, tp=1, layers=(2,),
        requests=tuple(ServedRequests(input_tokens=i, output_tokens=o, count=n) for i, o, n in kinds if n),
    )  # fmt: skip


async def test_it_is_told_once_it_lasts_and_again_after_a_calm(redis: Redis) -> None:
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    watch = TrafficWatch(redis, lambda: clock[0], OVER_S)
    intent = ADMISSION.intent.model_copy(update={"workload": WORKLOAD})
    admission = Admission(intent=intent, model=ADMISSION.model)
    planned = FingerprintMeasured(deployment_id=ID, admission=admission, facts=FACTS, fingerprints=(FINGERPRINT,))

    async def stretch(short: int, long: int) -> bool:
        """Reports of two replicas; the last of them is of its end."""
        told: list[object] = []
        for part, after_s in ((1, 1.0), (1, OVER_S), (0, 1.0)):
            told.append(await watch.judge(planned, report(short * part // 2, long * part // 2 + (1 - part))))
            clock[0] += timedelta(seconds=after_s)
        return any(each is not None for each in told)

    many, usual = (1800, 600), (900, 300)
    assert [await stretch(*many) for _ in range(IN_A_ROW + 2)] == [False] * (IN_A_ROW - 1) + [True, False, False]
    assert not await stretch(*usual)
    assert [await stretch(*many) for _ in range(IN_A_ROW)] == [False] * (IN_A_ROW - 1) + [True]


async def test_a_workload_without_sizes_is_not_watched(redis: Redis) -> None:
    watch = TrafficWatch(redis, lambda: datetime(2026, 1, 1, tzinfo=UTC), 0.0)
    planned = FingerprintMeasured(deployment_id=ID, admission=ADMISSION, facts=FACTS, fingerprints=(FINGERPRINT,))
    assert await watch.judge(planned, report(1000, 0)) is None
    assert await redis.keys() == []
