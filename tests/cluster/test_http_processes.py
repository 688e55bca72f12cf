"""Ingress as a process: two at once, started again, stopped, and without its broker or store."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from uuid import uuid4

import openai
import pytest
from redis.asyncio import Redis

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.queues import QueueSpec
from maveriq.bus.rabbitmq import RabbitMqBus
from maveriq.contracts import (
    DeploymentReleased,
    IntentAccepted,
    RequestCancelled,
)
from maveriq.settings import BadSetting
from maveriq_ingress import serving_http
from maveriq_ingress.__main__ import run
from maveriq_ingress.statuses import Statuses
from tests import servers
from tests.door import HELLO, MODEL, Door, ingress, quiet_ingress, served
from tests.fakes import ADMISSION, NOW, FakeWorker


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus) -> AsyncIterator[Door]:
    async with quiet_ingress(redis_url, bus) as opened:
        yield opened


async def test_two_ingresses_route_to_what_either_admitted(door: Door, redis_url: str, broker: InProcessBroker) -> None:
    async with served(door), ingress(redis_url, InProcessBus(broker)) as second:
        for one in (door, second, door, second):
            answer = await one.client.chat.completions.create(model="smol", messages=HELLO)
            assert answer.choices[0].message.content == "Hello, wörld!"


async def test_an_ingress_that_starts_again_knows_what_was_deployed(redis_url: str, bus: InProcessBus) -> None:
    async with ingress(redis_url, bus) as first:
        deployment_id = await first.deploy()
    async with ingress(redis_url, bus) as second:
        worker = FakeWorker(second.bus)
        await worker.serve(deployment_id)
        answer = await second.client.chat.completions.create(model="smol", messages=HELLO)
        assert answer.choices[0].message.content == "Hello, wörld!"
        await worker.stop()


async def test_an_intent_that_was_kept_but_never_passed_on_is_passed_on_at_the_next_start(
    redis_url: str, bus: InProcessBus, broker: InProcessBroker
) -> None:
    deployment_id = uuid4()
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        await Statuses(redis).accept(IntentAccepted(deployment_id=deployment_id, admission=ADMISSION), NOW)
    broker.declare(QueueSpec(name="passed-on", bindings=(IntentAccepted.topic,)))
    async with ingress(redis_url, bus) as door:
        await door.until(lambda: asyncio.sleep(0, len(broker.dead_letters("passed-on")) == 1))
    assert json.loads(broker.dead_letters("passed-on")[0].body)["deployment_id"] == str(deployment_id)
    assert f"requests.{deployment_id}.normal" in broker.queues


async def test_a_stop_ends_open_streams_and_cancels_their_requests(
    redis_url: str, bus: InProcessBus, broker: InProcessBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_http, "GOODBYE_S", 0.1)
    broker.declare(QueueSpec(name="cancels", bindings=(f"{RequestCancelled.topic}.#",)))
    async with ingress(redis_url, bus) as door, served(door) as worker:
        worker.hold.clear()
        stream = await door.client.chat.completions.create(model="smol", messages=HELLO, stream=True)
        await anext(aiter(stream))
        following = await door.http.send(
            door.http.build_request("GET", f"/v1/deployments/{worker.seen[0].request.deployment_id}/events"),
            stream=True,
        )
    assert following.status_code == 200
    assert len(broker.dead_letters("cancels")) == 1


async def test_the_same_holds_on_rabbitmq(redis_url: str, rabbitmq_bus: RabbitMqBus) -> None:
    async with ingress(redis_url, rabbitmq_bus) as door, served(door) as worker:
        stream = await door.client.chat.completions.create(model="smol", messages=HELLO, stream=True)
        assert "".join([one.choices[0].delta.content or "" async for one in stream]) == "Hello, wörld!"
        deployment_id = worker.seen[0].request.deployment_id
        await worker.stop()
        with pytest.raises(openai.InternalServerError, match="deadline passed before"):
            await door.client.completions.create(model="smol", prompt="x", extra_query={"timeout": "0.2"})
        waiting = asyncio.ensure_future(door.client.chat.completions.create(model="smol", messages=HELLO))
        await asyncio.sleep(0.2)  # in its queue by then, or refused: both are told below
        await door.http.delete(f"/v1/deployments/{deployment_id}")
        await rabbitmq_bus.publish(DeploymentReleased(deployment_id=deployment_id))
        with pytest.raises(openai.InternalServerError, match="deployment"):
            await waiting


async def test_without_a_store_inference_goes_on_and_the_rest_is_503(bus: InProcessBus) -> None:
    with servers.Redis() as redis:
        async with ingress(redis.url, bus) as door, served(door):
            redis.kill()
            answer = await door.client.chat.completions.create(model="smol", messages=HELLO)
            assert answer.choices[0].message.content == "Hello, wörld!"
            refused = await door.http.post("/v1/intents", json={"model": "smol"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            ready = await door.http.get("/readyz")
            assert (ready.status_code, ready.json()["store"]) == (503, "unreachable")


async def test_a_stream_that_waits_long_answers_first_and_fails_within(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maveriq_ingress.openai.SILENCE_S", 0.01)
    await door.deploy()  # nobody consumes its queue
    stream = await door.client.chat.completions.create(
        model="smol", messages=HELLO, stream=True, extra_query={"timeout": "0.1"}
    )
    with pytest.raises(openai.APIError, match="deadline"):
        await anext(aiter(stream))


async def test_without_a_broker_an_intent_is_503_and_leaves_nothing_behind(door: Door) -> None:
    await door.http.post("/v1/models", json=MODEL)
    assert (await door.http.get("/readyz")).status_code == 200
    await door.bus.close()
    answer = await door.http.post("/v1/intents", json={"model": "smol"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    assert "Retry-After" in answer.headers
    assert (await door.http.get("/v1/deployments")).json()["data"] == []
    ready = await door.http.get("/readyz")
    assert (ready.status_code, ready.json()["broker"], ready.json()["store"]) == (503, "unreachable", "connected")
    assert (await door.http.get("/healthz")).status_code == 200


async def test_a_port_in_use_stops_the_start_with_the_settings_name(redis_url: str, bus: InProcessBus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = {"MAVERIQ_REDIS_URL": redis_url, "MAVERIQ_HTTP_PORT": str(taken.getsockname()[1])}
        with pytest.raises(BadSetting, match="MAVERIQ_HTTP_PORT"):
            await run(bus, env)
    for name, bad in (("MAVERIQ_HTTP_PORT", "http"), ("MAVERIQ_REDIS_URL", "localhost")):
        with pytest.raises(BadSetting, match=name):
            await run(bus, {"MAVERIQ_REDIS_URL": redis_url} | {name: bad})
