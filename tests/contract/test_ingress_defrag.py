"""Defragmentations at the door: asked for, read to their end, refused with the field; a waiting deployment's record."""

import json
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.queues import QueueSpec
from maveriq.contracts import DefragmentationProgressed, DefragmentationRequested, DeploymentWaiting
from tests.door import Door, quiet_ingress
from tests.fakes import NOW

ALLOCATOR = "asked"


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus, broker: InProcessBroker) -> AsyncIterator[Door]:
    broker.declare(QueueSpec(name=ALLOCATOR, bindings=(DefragmentationRequested.topic,)))
    async with quiet_ingress(redis_url, bus) as opened:
        yield opened


def told(defragmentation_id: UUID, num_done: int, *, finished: bool) -> DefragmentationProgressed:
    return DefragmentationProgressed(
        defragmentation_id=defragmentation_id, apply=True, goal="free GPU a/0", num_done=num_done, finished=finished
    )


async def test_a_request_goes_to_the_allocator_and_its_latest_news_is_read(door: Door, broker: InProcessBroker) -> None:
    answer = await door.http.post("/v1/defrag", json={"apply": True, "free_gpu": "a/0"})
    assert answer.status_code == 202
    (letter,) = broker.dead_letters(ALLOCATOR)
    asked = DefragmentationRequested.model_validate_json(letter.body)
    assert (asked.apply, asked.free_gpu) == (True, "a/0")
    assert json.loads(letter.body) == answer.json()
    where = answer.headers["Location"]
    missing = await door.http.get(where)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "defragmentation_not_found")

    async def done() -> bool:
        return (await door.http.get(where)).json().get("finished") is True

    for news in (
        told(asked.defragmentation_id, 2, finished=True),
        told(asked.defragmentation_id, 1, finished=False),  # overtaken
    ):
        await door.bus.publish(news)
        await door.until(done)
    assert (await door.http.get(where)).json()["num_done"] == 2


async def test_what_is_asked_wrongly_is_refused_with_the_field(door: Door, broker: InProcessBroker) -> None:
    for body, field in (({"aply": True}, "aply"), ({"free_gpu": ""}, "free_gpu"), ({"apply": "perhaps"}, "apply")):
        answer = await door.http.post("/v1/defrag", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert (await door.http.get("/v1/defrag/seven")).status_code == 400
    assert not broker.dead_letters(ALLOCATOR)


async def test_a_record_says_what_its_deployment_waits_for(door: Door) -> None:
    deployment_id = await door.deploy()
    where = f"/v1/deployments/{deployment_id}"
    waits = DeploymentWaiting(
        deployment_id=deployment_id, detail="replica 1 is lost: 20 B missing", since=NOW, num_missing=1, num_placed=9
    )
    await door.bus.publish(waits)

    async def shown() -> bool:
        return (await door.http.get(where)).json()["waiting"] == waits.detail

    await door.until(shown)
    assert (await door.http.get(where)).json()["state"] == "ready"
