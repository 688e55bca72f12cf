"""Never measured twice, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from maveriq.contracts import Fingerprint, Precision
from maveriq_profiler.catalog import Catalog, Key
from maveriq_profiler.measuring import ProbeFailed
from tests.unit.profiler.rigs import fingerprint, rig

KEY = Key("shape", "torch", "2.13-r1", "cpu-1t", Precision.FP32, Precision.FP32)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    connection = Redis.from_url(redis_url)
    yield connection
    await connection.aclose()


class Measurement:
    """One that ends when it is let."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.runs = 0

    async def __call__(self) -> Fingerprint:
        self.runs += 1
        self.begun.set()
        await self.may_end.wait()
        return fingerprint(rig())


async def never() -> Fingerprint:
    raise AssertionError("measured twice")


async def test_what_is_known_is_not_measured_again(redis: Redis) -> None:
    one = Measurement()
    one.may_end.set()
    first = await Catalog(redis).get_or_measure(KEY, one)
    assert await Catalog(redis).get_or_measure(KEY, never) == first
    assert one.runs == 1


async def test_of_two_profilers_at_once_one_measures_and_both_have_the_result(redis: Redis) -> None:
    one = Measurement()
    first = asyncio.create_task(Catalog(redis).get_or_measure(KEY, one))
    await one.begun.wait()
    second = asyncio.create_task(Catalog(redis, poll_s=0.01).get_or_measure(KEY, never))
    await asyncio.sleep(0.05)
    assert not second.done()
    one.may_end.set()
    assert await second == await first


async def test_a_claim_is_renewed_for_as_long_as_the_measurement_takes(redis: Redis) -> None:
    one = Measurement()
    first = asyncio.create_task(Catalog(redis, claim_s=0.3).get_or_measure(KEY, one))
    await one.begun.wait()
    second = asyncio.create_task(Catalog(redis, claim_s=0.3, poll_s=0.01).get_or_measure(KEY, never))
    await asyncio.sleep(1.0)
    one.may_end.set()
    assert await second == await first


async def test_a_profiler_killed_in_the_middle_holds_nobody_up_for_longer_than_its_claim(redis: Redis) -> None:
    await redis.set("maveriq:profiler:fingerprint-claim:shape:" + KEY.field, "of the dead", px=200)
    one = Measurement()
    one.may_end.set()
    assert await Catalog(redis, poll_s=0.01).get_or_measure(KEY, one) == fingerprint(rig())


async def test_a_failed_or_cancelled_measurement_gives_its_claim_back_at_once(redis: Redis) -> None:
    async def failing() -> Fingerprint:
        raise ProbeFailed("no")

    catalog = Catalog(redis, claim_s=60)
    with pytest.raises(ProbeFailed):
        await catalog.get_or_measure(KEY, failing)
    stopped = Measurement()
    task = asyncio.create_task(catalog.get_or_measure(KEY, stopped))
    await stopped.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    one = Measurement()
    one.may_end.set()
    assert await catalog.get_or_measure(KEY, one) == fingerprint(rig())


async def test_each_part_of_the_key_is_measured_for_itself(redis: Redis) -> None:
    one = Measurement()
    one.may_end.set()
    others = (
        replace(KEY, shape_key="other"),
        replace(KEY, engine="trtllm"),
        replace(KEY, engine_version="2.14-r1"),
        replace(KEY, gpu_type="cpu-2t"),
        replace(KEY, precision=Precision.BF16),
        replace(KEY, kv_precision=Precision.FP8),
    )
    for key in (KEY, *others):
        await Catalog(redis).get_or_measure(key, one)
    assert one.runs == 1 + len(others)


async def test_of_each_gpu_type_only_the_latest_version_is_offered(redis: Redis) -> None:
    catalog = Catalog(redis)
    for version, gpu_type in (("1", "cpu-1t"), ("2", "cpu-1t"), ("1", "NVIDIA L4")):
        kept = fingerprint(replace(rig(gpu_type), engine_version=version))

        async def measured(kept: Fingerprint = kept) -> Fingerprint:
            return kept

        await catalog.get_or_measure(replace(KEY, gpu_type=gpu_type, engine_version=version), measured)
    offered = {(f.gpu_type, f.engine_version) for f in await catalog.of_shape("shape")}
    assert offered == {("cpu-1t", "2"), ("NVIDIA L4", "1")}
