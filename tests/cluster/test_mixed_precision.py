"""An intent for fragments too small for full precision: layers of mixed precisions, split unevenly, answer it."""

import json
import time
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import pytest

from maveriq.client import Client, connect
from maveriq.contracts import (
    Intent,
    LayerSensitivity,
    Model,
    Precision,
    ReplicaReady,
    Sampling,
    State,
    Workload,
)
from maveriq.topology import EXCHANGE
from tests.cluster.system import System
from tests.servers import RabbitMq, Redis

MIB = 2**20
FRAGMENTS = {"cpu:0": 300, "cpu:1": 220}  # MiB: SmolLM2 takes 513 in fp32 on one GPU, 621 on two
FLOOR = 0.999  # int8 alone keeps 0.997
LOST = (
    6.3e-05, 4.3e-05, 0.0001, 6.8e-05, 5.3e-05, 5.9e-05, 4.3e-05, 5.3e-05, 6.3e-05, 8.3e-05, 9.5e-05, 0.0005,
    7.4e-05, 7.8e-05, 8.8e-05, 7.9e-05, 9.5e-05, 5.5e-05, 0.00011, 7.9e-05, 6.3e-05, 5.3e-05, 5.4e-05, 5.5e-05,
    3.4e-05, 2.8e-05, 3.2e-05, 3.8e-05, 0.00011, 0.00039,
)  # fmt: skip
"""Of SmolLM2's layers in int8, nats a token: `maveriq accuracy smollm2 --layers TEXT --max-tokens 256`."""
SENSITIVITY = LayerSensitivity(precisions=(Precision.INT8,), layers=tuple((lost,) for lost in LOST))
INTENT = Intent(
    model="smollm2-mixed", min_accuracy=FLOOR,
    workload=Workload(input_tokens=24, output_tokens=16, request_rate_per_s=0.05, context_tokens=128),
)  # fmt: skip


@pytest.fixture
def system(cache_dir: Path) -> Iterator[System]:
    with RabbitMq() as rabbitmq, Redis(persistent=True) as redis:
        devices = ",".join(f"{name}={size}MiB" for name, size in FRAGMENTS.items())
        settings = {"MAVERIQ_PROFILE_BUDGET_S": "0.5", "MAVERIQ_PROFILE_BATCHES": "1,2"}
        with System(rabbitmq.url, redis.url, devices=devices, cache_dir=cache_dir, **settings) as running:
            wait_for_gpus(running, len(FRAGMENTS))
            yield running


def wait_for_gpus(system: System, number: int) -> None:
    """Until ingress knows what is free: an intent is planned over that."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{system.url}/v1/gpus", timeout=5) as answer:
            if sum(len(node["gpus"]) for node in json.load(answer)["data"]) == number:
                return
        time.sleep(0.1)
    raise AssertionError(f"the worker's GPUs were not heard of\n{system.logs()}")


@pytest.fixture
async def client(system: System) -> AsyncIterator[Client]:
    async with connect(system.amqp_url) as connected:
        yield connected


@asynccontextmanager
async def hearing_replicas(system: System) -> AsyncGenerator[aio_pika.abc.AbstractQueue]:
    async with await aio_pika.connect(system.amqp_url) as connection:
        queue = await (await connection.channel()).declare_queue(exclusive=True)
        await queue.bind(EXCHANGE, ReplicaReady.topic)
        yield queue


async def test_an_intent_is_met_by_a_mixed_pipeline_over_fragments_too_small_for_full_precision(
    system: System, client: Client, smollm2: Model
) -> None:
    await client.register(smollm2.model_copy(update={"name": INTENT.model, "sensitivity": SENSITIVITY}))
    async with hearing_replicas(system) as replicas:
        deployed = await client.deploy(INTENT)
        ready = ReplicaReady.model_validate_json((await replicas.get(timeout=5)).body)
    (placement,) = deployed.placements
    candidate, stages = placement.candidate, placement.stages
    assert (deployed.state, candidate.configuration.variant) == (State.READY, "mixed")

    assert len(stages) == len(candidate.stages) == 2
    assert [stage.precisions for stage in stages] == [planned.precisions for planned in candidate.stages]
    precisions = [precision for stage in stages for precision in stage.precisions]
    assert len(precisions) == len(LOST) and len(set(precisions)) > 1
    assert stages[0].precisions != stages[1].precisions
    assert candidate.prediction.accuracy is not None and candidate.prediction.accuracy >= FLOOR

    free = {f"{placement.node}/{name}": size * MIB for name, size in FRAGMENTS.items()}
    assert all(stage.reserved_bytes <= free[stage.gpus[0]] for stage in stages)
    assert len(ready.stage_bytes) == len(stages)
    for reported, stage in zip(ready.stage_bytes, stages, strict=True):
        assert 0.8 * stage.reserved_bytes < reported <= stage.reserved_bytes

    asked = client.generate(
        deployed, "The capital of France is", sampling=Sampling(max_tokens=8, temperature=0, ignore_eos=True)
    )
    chunks = [chunk async for chunk in asked]
    assert sum(len(chunk.token_ids) for chunk in chunks) == 8
    assert "Paris" in "".join(chunk.text for chunk in chunks)
    assert (await client.release(deployed)).state is State.RELEASED
