"""Services as processes: a producer that knows nothing of our Python is served, and any one service may be killed."""

import asyncio
import json
import os
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from transformers import AutoTokenizer

from maveriq.client import Client
from maveriq.contracts import Deployment, FinishReason, Intent, Model, Sampling, State, Workload
from tests.cluster.conftest import FP32, save_llama
from tests.cluster.system import SERVICES, System

DOC = Path(__file__).parents[2] / "docs" / "producing.md"
PROMPT = "The capital of France is"
ANSWER = Sampling(max_tokens=100, temperature=0, ignore_eos=True)
STREAMS = 3


@pytest.fixture(scope="module")
def deep(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Thirty small layers: a token takes long enough to be killed in between, and no device holds them all."""
    folder = tmp_path_factory.mktemp("deep")
    tokenizer = AutoTokenizer.from_pretrained(tiny.source)
    save_llama(folder, tokenizer, num_hidden_layers=30, intermediate_size=512)
    return Model(name="deep", source=str(folder), variants=FP32)


def program() -> str:
    """The block of the document after the comment that names this test."""
    found = re.search(rf"<!--[^>]*{Path(__file__).name} -->\n```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert found is not None, f"{DOC} has lost its runnable block"
    return found[1]


async def produce(system: System, *arguments: str) -> tuple[int | None, str, str]:
    """Run the program as its own process; exit code, output, errors."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program(), *arguments,
        env={**os.environ, "MAVERIQ_AMQP_URL": system.amqp_url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(running.communicate(), 180)
    return running.returncode, out.decode(), err.decode()


async def test_the_documented_program_gets_its_states_and_its_tokens(system: System, tiny: Model) -> None:
    code, out, err = await produce(system, "plain-tiny", tiny.source)
    assert code == 0, f"{err}\n{system.logs()}"
    lines = out.splitlines()
    assert lines[0] == "accepted" and "ready" in lines and lines[-1] == "released"
    assert re.search(r"^\d+ tokens, (length|stop)$", out, re.MULTILINE)


async def test_the_documented_program_is_told_what_to_change(system: System) -> None:
    code, _, err = await produce(system, "no such name", "nowhere")
    assert code == 1
    assert "model.name: " in err


@pytest.fixture(scope="module")
def deployed() -> dict[str, Any]:
    """What the first test deployed, for those after it."""
    return {}


async def deployment_of(client: Client, model: Model, deployed: dict[str, Any]) -> Deployment:
    if "deployment" not in deployed:
        await client.register(model)
        intent = Intent(
            model=model.name,
            workload=Workload(input_tokens=16, output_tokens=100, concurrency=STREAMS + 1, context_tokens=128),
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
    name: str, system: System, client: Client, deep: Model, tiny: Model, deployed: dict[str, Any]
) -> None:
    deployment = await deployment_of(client, deep, deployed)
    await client.register(tiny)
    begun = [asyncio.Event() for _ in range(STREAMS)]
    streams = [asyncio.create_task(answer(client, deployment.deployment_id, event)) for event in begun]
    await asyncio.gather(*(event.wait() for event in begun))

    system.kill(name)
    during = asyncio.create_task(answer(client, deployment.deployment_id))
    wanted = uuid4()
    intent = Intent(model="tiny", workload=Workload(input_tokens=16, output_tokens=100, context_tokens=128))
    deploying = asyncio.create_task(client.deploy(intent, deployment_id=wanted))
    await asyncio.sleep(0.5)
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
