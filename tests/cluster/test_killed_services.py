"""Any one service is killed during streams and started again: nothing is lost, nothing is answered twice."""

import asyncio
import json
import urllib.request
from typing import Any
from uuid import UUID, uuid4

import pytest

from maveriq.client import Client
from maveriq.contracts import Deployment, FinishReason, Intent, Model, Sampling, State, Workload
from tests.cluster.system import SERVICES, System

PROMPT = "The capital of France is"
ANSWER = Sampling(max_tokens=40, temperature=0, ignore_eos=True)
STREAMS = 3


@pytest.fixture(scope="module")
def deployed() -> dict[str, Any]:
    """What the first test deployed, for those after it."""
    return {}


async def deployment_of(client: Client, model: Model, deployed: dict[str, Any]) -> Deployment:
    if "deployment" not in deployed:
        await client.register(model)
        intent = Intent(
            model=model.name,
            workload=Workload(input_tokens=32, output_tokens=32, request_rate_per_s=0.2, context_tokens=128),
        )
        deployed["deployment"] = await client.deploy(intent)
        deployed["tokens"] = await answer(client, deployed["deployment"].deployment_id)
    deployment: Deployment = deployed["deployment"]
    return deployment


async def answer(client: Client, deployment_id: UUID, begun: asyncio.Event | None = None) -> list[int]:
    """The tokens of one request, checked to come once each and to end once."""
    tokens: list[int] = []
    endings = 0
    async for chunk in client.generate(deployment_id, PROMPT, sampling=ANSWER):
        tokens += chunk.token_ids
        endings += chunk.finish_reason is not None
        if begun is not None and len(tokens) > 2:
            begun.set()
    assert endings == 1
    assert chunk.finish_reason is FinishReason.LENGTH
    return tokens


def get(system: System, path: str) -> Any:
    with urllib.request.urlopen(system.url + path, timeout=10) as response:
        return json.load(response)


def holders(system: System) -> list[tuple[str, str]]:
    """(GPU, deployment) of every holding."""
    return [
        (state["gpu"]["id"], holding["deployment_id"])
        for node in get(system, "/v1/gpus")["data"]
        for state in node["gpus"]
        for holding in state["holdings"]
    ]


@pytest.mark.parametrize("name", SERVICES)
async def test_a_killed_service_loses_and_repeats_nothing(
    name: str, system: System, client: Client, smollm2: Model, tiny: Model, deployed: dict[str, Any]
) -> None:
    deployment = await deployment_of(client, smollm2, deployed)
    await client.register(tiny)
    begun = [asyncio.Event() for _ in range(STREAMS)]
    streams = [asyncio.create_task(answer(client, deployment.deployment_id, event)) for event in begun]
    await asyncio.gather(*(event.wait() for event in begun))

    system.kill(name)
    during = asyncio.create_task(answer(client, deployment.deployment_id))
    wanted = uuid4()
    intent = Intent(model="tiny", workload=Workload(input_tokens=16, output_tokens=16, context_tokens=64))
    deploying = asyncio.create_task(client.deploy(intent, deployment_id=wanted))
    await asyncio.sleep(1)
    system.start(name)

    assert await asyncio.gather(*streams, during) == [deployed["tokens"]] * (STREAMS + 1)
    ready = await deploying
    assert ready.state is State.READY
    assert len(await answer(client, wanted)) == ANSWER.max_tokens

    system.wait_ready()
    placement = ready.placements[-1]
    gpus = [gpu for stage in placement.stages for gpu in stage.gpus]
    assert sorted(gpu for gpu, holder in holders(system) if holder == str(wanted)) == sorted(gpus)

    assert (await client.release(wanted)).state is State.RELEASED
    held = {stage_gpu for stage in deployment.placements[-1].stages for stage_gpu in stage.gpus}
    assert {gpu for gpu, _ in holders(system)} == held
    assert {record["deployment_id"] for record in get(system, "/v1/deployments")["data"]} >= {str(wanted)}
