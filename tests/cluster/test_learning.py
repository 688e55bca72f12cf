"""A system serves a model that nobody measured, learns from it, and plans again for what it predicted wrong."""

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis as RedisClient
from transformers import LlamaConfig

from maveriq import law
from maveriq.client import Client, connect
from maveriq.contracts import Basis, Deployment, Intent, Model, ModelFacts, Precision, RunSample, Sampling, Workload
from maveriq.engine_version import engine_version
from maveriq_profiler.facts import facts_of
from maveriq_profiler.pool import Outcome, Pool
from maveriq_profiler.refitting import Refitting
from maveriq_profiler.samples import Samples
from tests.cluster.system import System
from tests.servers import RabbitMq, Redis

PATIENCE_S = 45.0
FP32 = Precision.FP32
POOL = Pool("torch", engine_version("torch"), "cpu-1t", 4)
FAR_TOO_FAST = {
    "step": 0.01, "layer[full]": 0.001, "weights": 0.1, "head": 0.1, "rows@2": 10.0, "rows@4": 10.0, "requests": 0.001,
    "prompt": 0.05, "compute": 1.0, "prompt_head": 0.1,
}  # fmt: skip
"""No CPU is: as if a GPU type had been calibrated before something slowed it down a hundred times."""
ANSWER = Sampling(max_tokens=48, temperature=0, ignore_eos=True)


@pytest.fixture
def system(cache_dir: Path, tiny: Model) -> Iterator[System]:
    with RabbitMq() as rabbitmq, Redis(persistent=True) as redis:
        asyncio.run(calibrate(redis.url))
        settings = {"MAVERIQ_REPORT_S": "1"}
        with System(rabbitmq.url, redis.url, devices="cpu:0=400MiB", cache_dir=cache_dir, **settings) as running:
            yield running


@pytest.fixture
async def client(system: System) -> AsyncIterator[Client]:
    async with connect(system.amqp_url) as connected:
        yield connected


async def calibrate(redis_url: str) -> None:
    """As if the programme had run, with times of FAR_TOO_FAST."""
    async with RedisClient.from_url(redis_url) as redis:
        samples, calibration_id = Samples(redis), uuid4()
        await samples.begin(POOL, calibration_id, 3.0)
        for hidden, layers in ((64, 2), (128, 4), (96, 8)):
            config = LlamaConfig(
                hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=4,
                num_key_value_heads=4, vocab_size=32_768, max_position_embeddings=1024,
            )  # fmt: skip
            outcome = Outcome(samples=tuple(runs(facts_of(config), layers)), cost_s=1.0)
            await samples.keep_outcome(POOL, f"seeded|{hidden}", outcome)
        await samples.end(POOL, calibration_id)
        assert await Refitting(samples, lambda: datetime.now(UTC)).fit(POOL) is not None


def runs(facts: ModelFacts, layers: int) -> Iterator[RunSample]:
    rig = law.Rig("torch", FP32, FP32, 1, (1, 2, 4))
    for num_layers in (1, layers):
        for batch, tokens in ((1, 32), (1, 256), (2, 32), (4, 32)):
            shape = {"batch": batch, "num_layers": num_layers, "num_stages": 1, "fullest": num_layers}
            prefill = law.prefill_terms(facts, rig, input_tokens=tokens, **shape).through(num_layers)
            decode = law.decode_terms(facts, rig, context_tokens=tokens + 4, **shape).through(num_layers)
            yield RunSample(
                facts=facts, precision=FP32, kv_precision=FP32, layers=(num_layers,), batch=batch, input_tokens=tokens,
                output_tokens=8, prefill_ms=law.dot(FAR_TOO_FAST, prefill), decode_ms=law.dot(FAR_TOO_FAST, decode),
                activation_bytes=tokens * batch * facts.hidden_size * 40, runtime_bytes=0,
            )  # fmt: skip


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
