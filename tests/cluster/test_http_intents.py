"""Intents, deployments, models and GPUs over HTTP."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import openai
import pytest

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.contracts import (
    DeploymentDraining,
    DeploymentReleased,
    FingerprintMeasured,
    Gpu,
    GpuState,
    Holding,
    InventoryChanged,
    PlacementReserved,
    PlanComputed,
    PlanPreviewed,
    ReplicaReady,
)
from tests.door import HELLO, MODEL, Door, none_serves, quiet_ingress
from tests.fakes import ADMISSION, FACTS, FINGERPRINT, PLAN, placement


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus) -> AsyncIterator[Door]:
    async with quiet_ingress(redis_url, bus) as opened:
        yield opened


async def test_an_intent_is_202_and_its_deployment_can_be_followed_to_its_end(door: Door) -> None:
    await door.http.post("/v1/models", json=MODEL)
    answer = await door.http.post("/v1/intents", json={"model": "smol", "slo": {"ttft_ms": 300}})
    assert answer.status_code == 202
    deployment_id = UUID(answer.json()["deployment_id"])
    assert answer.json()["state"] == "accepted"
    assert answer.headers["Location"] == f"/v1/deployments/{deployment_id}"
    measured = FingerprintMeasured(
        deployment_id=deployment_id, admission=ADMISSION, facts=FACTS, fingerprints=(FINGERPRINT,)
    )
    facts = [
        measured,
        PlanComputed(deployment_id=deployment_id, admission=ADMISSION, plan=PLAN),
        PlacementReserved(deployment_id=deployment_id, node="n1", placement=placement(0, "t")),
        ReplicaReady(deployment_id=deployment_id, replica=0, token="t", node="n1", load_s=1),
        DeploymentDraining(deployment_id=deployment_id, node="n1", replica=0, token="t"),
        DeploymentReleased(deployment_id=deployment_id),
    ]
    states: list[str] = []
    async with door.http.stream("GET", f"/v1/deployments/{deployment_id}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        async for line in events.aiter_lines():
            if line.startswith("data: "):
                states.append(json.loads(line.removeprefix("data: "))["state"])
                if facts:
                    await door.bus.publish(facts.pop(0))
    assert states == ["accepted", "measured", "planned", "reserved", "ready", "draining", "released"]


async def test_a_dry_run_ends_with_its_plan_and_opens_no_queue(door: Door, broker: InProcessBroker) -> None:
    await door.http.post("/v1/models", json=MODEL)
    answer = await door.http.post("/v1/intents?dry_run=true", json={"model": "smol"})
    deployment_id = UUID(answer.json()["deployment_id"])
    assert answer.json()["dry_run"] is True
    assert f"requests.{deployment_id}.normal" not in broker.queues
    dry = ADMISSION.model_copy(update={"dry_run": True})
    await door.bus.publish(PlanPreviewed(deployment_id=deployment_id, admission=dry, plan=PLAN))
    await door.until(lambda: in_state(door, deployment_id, "planned"))
    events = (await door.http.get(f"/v1/deployments/{deployment_id}/events")).text
    assert json.loads(events.split("data: ")[1])["plan"]["num_considered"] == PLAN.num_considered


async def in_state(door: Door, deployment_id: UUID, state: str) -> bool:
    return await door.state(deployment_id) == state


async def test_an_id_can_be_chosen_in_the_body_or_a_header_and_used_for_one_intent_only(door: Door) -> None:
    await door.http.post("/v1/models", json=MODEL)
    chosen = str(uuid4())
    for _ in range(2):
        answer = await door.http.post("/v1/intents", json={"model": "smol", "deployment_id": chosen})
        assert (answer.status_code, answer.json()["deployment_id"]) == (202, chosen)
    header = {"X-Deployment-Id": chosen}
    assert (await door.http.post("/v1/intents", json={"model": "smol"}, headers=header)).status_code == 202
    other = await door.http.post("/v1/intents", json={"model": "smol", "max_gpus": 1}, headers=header)
    assert other.status_code == 409
    assert "choose a new UUID" in other.json()["error"]["message"]
    assert len((await door.http.get("/v1/deployments")).json()["data"]) == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "smoll"}, "model"),
        ({}, "model"),
        ({"model": "smol", "slo": {"ttft": 3}}, "slo.ttft"),
        ({"model": "smol", "slo": {"ttft_ms": -1}}, "slo.ttft_ms"),
        ({"model": "smol", "workload": {"input_tokens": 10**9}}, "workload.input_tokens"),
        ({"model": "smol", "min_accuracy": 95}, "min_accuracy"),
        ({"model": "smol", "objective": "fast"}, "objective"),
        ({"model": "smol", "deployment_id": "mine"}, "deployment_id"),
    ],
)
async def test_a_bad_intent_is_400_and_names_the_field_and_the_remedy(
    door: Door, body: dict[str, Any], param: str
) -> None:
    await door.http.post("/v1/models", json=MODEL)
    answer = await door.http.post("/v1/intents", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["faults"][0]["remedy"]
    assert (await door.http.get("/v1/deployments")).json()["data"] == []


async def test_a_release_is_202_and_stops_the_routing_at_once(door: Door) -> None:
    deployment_id = await door.deploy()
    answer = await door.http.delete(f"/v1/deployments/{deployment_id}")
    assert (answer.status_code, answer.json()["state"]) == (202, "draining")
    await door.until(lambda: none_serves(door))
    with pytest.raises(openai.NotFoundError):
        await door.client.chat.completions.create(model="smol", messages=HELLO)


async def test_deployments_that_are_not_there_are_404_and_ids_that_are_none_400(door: Door) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        missing = await door.http.request(method, f"/v1/deployments/{uuid4()}{path}")
        assert (missing.status_code, missing.json()["error"]["param"]) == (404, "deployment_id")
        assert (await door.http.request(method, f"/v1/deployments/mine{path}")).status_code == 400


async def test_a_bad_model_is_400_and_a_good_one_can_be_registered_again(door: Door) -> None:
    bad = await door.http.post("/v1/models", json=MODEL | {"variants": [{"precision": "fp3"}]})
    assert bad.status_code == 400
    assert bad.json()["error"]["param"] == "variants.0.precision"
    for source in ("a", "b"):
        assert (await door.http.post("/v1/models", json=MODEL | {"source": source})).status_code == 201
    assert (await door.http.get("/v1/models/smol")).json()["registered"]["source"] == "b"


async def test_gpus_show_what_is_free_on_every_node(door: Door) -> None:
    for node in ("b", "a"):
        gpu = Gpu(id=f"{node}/cpu:0", gpu_type="cpu-1t", total_bytes=100, foreign_bytes=10)
        held = GpuState(gpu=gpu, holdings=(Holding(deployment_id=uuid4(), replica=0, bytes=30),))
        await door.bus.publish(InventoryChanged(node=node, engine="torch", gpus=(held,)))

    async def both() -> bool:
        return len((await door.http.get("/v1/gpus")).json()["data"]) == 2

    await door.until(both)
    nodes = (await door.http.get("/v1/gpus")).json()["data"]
    assert [one["node"] for one in nodes] == ["a", "b"]
    assert [one["gpus"][0]["free_bytes"] for one in nodes] == [60, 60]
