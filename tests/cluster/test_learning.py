"""A system serves a model that nobody measured, learns from it, and plans again for what it predicted wrong."""

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from maveriq.client import Client, connect
from maveriq.contracts import Basis, Deployment, Intent, Model, Sampling, Workload
from tests.cluster.seeding import FAR_TOO_FAST, calibrate, know
from tests.cluster.system import System

PATIENCE_S = 45.0
ANSWER = Sampling(max_tokens=48, temperature=0, ignore_eos=True)


@pytest.fixture
def system(cache_dir: Path, tiny: Model, rabbitmq_url: str, redis_url: str) -> Iterator[System]:
    asyncio.run(calibrate(redis_url, FAR_TOO_FAST))
    asyncio.run(know(redis_url, tiny.source))
    settings = {"MAVERIQ_REPORT_S": "1", "MAVERIQ_NODE": "learner"}
    with System(rabbitmq_url, redis_url, devices="cpu:0=400MiB", cache_dir=cache_dir, **settings) as running:
        yield running


@pytest.fixture
async def client(system: System) -> AsyncIterator[Client]:
    async with connect(system.amqp_url) as connected:
        yield connected


async def test_served_times_raise_the_version_and_a_lasting_miss_is_flagged_and_planned_for_again(
    system: System, client: Client, tiny: Model
) -> None:
    await client.register(tiny)
    intent = Intent(model=tiny.name, workload=Workload(input_tokens=16, output_tokens=48, context_tokens=128))
    planned = await client.deploy(intent)
    assert not planned.fingerprints and configured(planned).prediction.basis is Basis.CALIBRATION
    assert "measuring" not in system.log("profiler").read_text(), "nothing was measured of it"
    assert [one.version for one in planned.calibrations] == [1]

    async with under_load(client, planned):
        await until(system, lambda: version(system) >= 2)
        missed = await until(system, lambda: record(system, planned).prediction_missed)
        again = await until(system, lambda: newer(record(system, planned), planned))
    low, high = missed.interval_ms
    assert not low <= missed.measured_ms <= high
    assert missed.predicted_ms < missed.measured_ms / 10
    assert again.calibrations[0].version > 1
    assert step_ms(again) > 3 * step_ms(planned), "the new plan knows what was seen"
    assert 'maveriq_predictions_missed_total{engine="torch",gpu_type="cpu-1t"' in told(system, "/metrics").decode()


def configured(deployment: Deployment) -> Any:
    assert deployment.plan is not None
    return deployment.plan.candidates[0]


def step_ms(deployment: Deployment) -> float:
    found: float = configured(deployment).prediction.tpot_ms
    return found


def newer(now: Deployment, planned: Deployment) -> Deployment | None:
    return now if now.plan != planned.plan else None


def version(system: System) -> int:
    """Of the calibration as ingress knows it: 0 until it hears of a fit."""
    return max((one["version"] for one in json.loads(told(system, "/v1/calibrations"))["data"]), default=0)


def record(system: System, deployment: Deployment) -> Deployment:
    return Deployment.model_validate_json(told(system, f"/v1/deployments/{deployment.deployment_id}"))


def told(system: System, path: str) -> bytes:
    with urllib.request.urlopen(f"{system.url}{path}", timeout=5) as answer:
        found: bytes = answer.read()
    return found


@asynccontextmanager
async def under_load(client: Client, deployment: Deployment) -> AsyncIterator[None]:
    """Two requests in flight until left."""

    async def ask() -> None:
        while True:
            async for _ in client.generate(deployment.deployment_id, "The capital of", sampling=ANSWER):
                pass

    asking = [asyncio.create_task(ask()) for _ in range(2)]
    try:
        yield
    finally:
        for task in asking:
            task.cancel()
        ended = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended


async def until(system: System, check: Callable[[], Any]) -> Any:
    """What it gives, once it gives something."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = await asyncio.to_thread(check)
        if found:
            return found
        await asyncio.sleep(0.2)
    raise AssertionError(f"not in {PATIENCE_S:.0f} s\n{system.logs()}")
