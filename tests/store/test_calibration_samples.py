"""A GPU type's samples on a real Redis: kept once, measured by one, bounded, and never mixed with another's."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from redis.asyncio import Redis

from maveriq_profiler import samples as samples_file
from maveriq_profiler.folding import of_fingerprint, served
from maveriq_profiler.pool import Outcome, Pool
from maveriq_profiler.samples import Samples
from tests.unit.profiler.calibrations import NOW, calibration, decoded, report
from tests.unit.profiler.rigs import FACTS, fingerprint, rig

POOL = Pool("torch", "2.13-r1", "cpu-1t", 8)
FIRST, SECOND = UUID(int=1), UUID(int=2)
GOOD = Outcome(samples=of_fingerprint(FACTS, fingerprint(rig())), cost_s=2.5)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    connection = Redis.from_url(redis_url)
    yield connection
    await connection.aclose()


async def test_the_first_outcome_of_a_run_counts_and_is_paid_for_once(redis: Redis) -> None:
    samples = Samples(redis)
    await samples.begin(POOL, FIRST, 60)
    await samples.keep_outcome(POOL, "a", GOOD)
    await samples.keep_outcome(POOL, "a", Outcome(cost_s=9, problem="late"))
    assert await samples.outcomes(POOL) == {"a": GOOD}
    run = await samples.run(POOL)
    assert run is not None and run.spent_s == 2.5


async def test_another_engine_version_or_gpu_type_has_samples_of_its_own(redis: Redis) -> None:
    samples = Samples(redis)
    await samples.keep_outcome(POOL, "a", GOOD)
    for other in (replace(POOL, engine_version="3"), replace(POOL, gpu_type="L4"), replace(POOL, engine="trtllm")):
        assert await samples.outcomes(other) == {}
    assert await samples.outcomes(replace(POOL, max_pp=2)) == {"a": GOOD}


async def test_a_run_is_one_profilers_at_a_time_and_nobodys_once_it_is_measured(redis: Redis) -> None:
    one, other = Samples(redis), Samples(redis)
    async with one.claimed(POOL, "a") as ours:
        assert ours
        async with other.claimed(POOL, "a") as theirs:
            assert not theirs
        async with other.claimed(POOL, "b") as another:
            assert another
    async with other.claimed(POOL, "a") as again:
        assert again
        await other.keep_outcome(POOL, "a", GOOD)
    async with one.claimed(POOL, "a") as late:
        assert not late


async def test_a_claim_is_renewed_while_it_is_used_and_a_dead_profilers_ends(redis: Redis) -> None:
    async with Samples(redis, claim_s=0.2).claimed(POOL, "a") as ours:
        assert ours
        await asyncio.sleep(0.5)
        async with Samples(redis).claimed(POOL, "a") as theirs:
            assert not theirs
    await redis.set(f"maveriq:profiler:calibration-claim:{POOL.name}|b", "of the dead", px=50)
    await asyncio.sleep(0.1)
    async with Samples(redis).claimed(POOL, "b") as ours:
        assert ours


async def test_a_new_run_tries_again_what_failed_and_keeps_what_is_known(redis: Redis) -> None:
    samples = Samples(redis)
    await samples.begin(POOL, FIRST, 60)
    await samples.keep_outcome(POOL, "a", GOOD)
    await samples.keep_outcome(POOL, "b", Outcome(cost_s=1, problem="out of memory"))
    await samples.begin(POOL, SECOND, 30)
    assert await samples.outcomes(POOL) == {"a": GOOD}
    await samples.end(POOL, FIRST)  # it is not this one's to end
    run = await samples.run(POOL)
    assert run is not None
    assert (run.calibration_id, run.budget_s, run.spent_s, run.ended) == (SECOND, 30, 0, False)


async def test_served_kinds_are_folded_together_and_bounded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_file, "MAX_KINDS", 3)
    samples = Samples(redis)
    await samples.fold_in(POOL, served(report(decoded(2.0)), NOW))
    await samples.fold_in(POOL, served(report(decoded(4.0)), NOW))
    (kind,) = (await samples.served(POOL)).values()
    assert (kind.sample.decode_ms, kind.count) == (3.0, 20)
    for batch in (2, 3, 4):
        await samples.fold_in(POOL, served(report(decoded(4.0, batch=batch)), NOW + timedelta(seconds=batch)))
    assert sorted(one.sample.batch for one in (await samples.served(POOL)).values()) == [2, 3, 4]


async def test_of_two_fits_made_at_once_one_is_kept(redis: Redis) -> None:
    samples = Samples(redis)
    assert await samples.keep_calibration(POOL, calibration())
    assert not await samples.keep_calibration(POOL, calibration(cost_s=1.0))
    assert await samples.keep_calibration(POOL, calibration(version=2, cost_s=2.0))
    kept = await samples.calibration(POOL)
    assert kept is not None and (kept.version, kept.cost_s) == (2, 2.0)


async def test_of_each_gpu_type_the_latest_fit_is_offered(redis: Redis) -> None:
    samples = Samples(redis)
    newer = replace(POOL, engine_version="3.0")
    await samples.keep_calibration(POOL, calibration())
    later = calibration(engine_version="3.0", fitted_at=NOW + timedelta(days=1))
    await samples.keep_calibration(newer, later)
    await samples.keep_calibration(replace(POOL, gpu_type="NVIDIA L4"), calibration("NVIDIA L4"))
    assert await samples.calibrations() == (calibration("NVIDIA L4"), later)


async def test_of_all_profilers_one_may_fit_in_a_while(redis: Redis) -> None:
    allowed = await asyncio.gather(*(Samples(redis).may_refit(POOL, 60) for _ in range(5)))
    assert sorted(allowed) == [False] * 4 + [True]
    assert await Samples(redis).may_refit(replace(POOL, gpu_type="L4"), 60)
