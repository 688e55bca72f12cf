"""The HTTP door, as its users see it: the official openai client, unmodified, and plain requests."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from redis.asyncio import Redis
from structlog.testing import capture_logs
from tests import servers
from tests.fakes import ADMISSION, FACTS, FINGERPRINT, NOW, PLAN, FakeWorker, placement

from maveriq.bus import Bus
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.queues import QueueSpec
from maveriq.bus.rabbitmq import RabbitMqBus
from maveriq.contracts import (
    DeploymentDraining,
    DeploymentReleased,
    ErrorCode,
    FingerprintMeasured,
    Gpu,
    GpuState,
    Holding,
    InferenceError,
    IntentAccepted,
    InventoryChanged,
    PlacementReserved,
    PlanComputed,
    PlanPreviewed,
    Priority,
    ReplicaReady,
    RequestCancelled,
)
from maveriq.settings import BadSetting
from maveriq.topology import REQUEST_QUEUE_LENGTH
from maveriq_ingress import serving_http
from maveriq_ingress.__main__ import run
from maveriq_ingress.bodies import MAX_BODY_BYTES
from maveriq_ingress.statuses import Statuses

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello"}]
MODEL = {"name": "smol", "source": "HuggingFaceTB/SmolLM2-135M-Instruct"}


@dataclass
class Door:
    """A running ingress, and what stands for the services behind it."""

    bus: Bus
    url: str
    http: httpx.AsyncClient
    client: openai.AsyncOpenAI

    async def until(self, check: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not await check():  # noqa: ASYNC110  # what it waits for is another process's
                await asyncio.sleep(0.005)

    async def state(self, deployment_id: UUID | str) -> str:
        found: str = (await self.http.get(f"/v1/deployments/{deployment_id}")).json()["state"]
        return found

    async def deploy(self, **intent: Any) -> UUID:
        """Register, ask, and play the services until it is ready."""
        await self.http.post("/v1/models", json=MODEL)
        answer = await self.http.post("/v1/intents", json={"model": "smol"} | intent)
        assert answer.status_code == 202, answer.text
        deployment_id = UUID(answer.json()["deployment_id"])
        await self.bus.publish(ReplicaReady(deployment_id=deployment_id, replica=0, token="t", node="n", load_s=1))
        await self.until(lambda: self._serves(deployment_id))
        return deployment_id

    async def _serves(self, deployment_id: UUID) -> bool:
        return (await self.http.get(f"/v1/models/{deployment_id}")).status_code == 200


@asynccontextmanager
async def ingress(redis_url: str, bus: Bus) -> AsyncIterator[Door]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    serving = asyncio.ensure_future(run(bus, {"MAVERIQ_REDIS_URL": redis_url, "MAVERIQ_HTTP_PORT": str(port)}))
    async with (
        httpx.AsyncClient(base_url=url, timeout=20) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        door = Door(bus, url, http, client)

        async def listens() -> bool:
            assert not serving.done(), serving.exception()
            try:
                return (await http.get("/healthz")).status_code == 200
            except httpx.ConnectError:
                return False

        await door.until(listens)
        yield door
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus) -> AsyncIterator[Door]:
    with capture_logs() as logged:
        async with ingress(redis_url, bus) as opened:
            yield opened
    assert [one for one in logged if one["log_level"] == "error"] == []


@asynccontextmanager
async def served(door: Door, **script: Any) -> AsyncIterator[FakeWorker]:
    worker = FakeWorker(door.bus, **script)
    await worker.serve(await door.deploy())
    yield worker
    await worker.stop()


# --- inference through the official client


async def test_a_chat_is_answered_whole(door: Door) -> None:
    async with served(door) as worker:
        answer = await door.client.chat.completions.create(model="smol", messages=HELLO, temperature=0, seed=5)
    assert answer.choices[0].message.content == "Hello, wörld!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 4, 11)
    sampling = worker.seen[0].request.sampling
    assert (sampling.temperature, sampling.seed) == (0.0, 5)


async def test_a_chat_streams_piece_by_piece_with_usage_last(door: Door) -> None:
    async with served(door):
        stream = await door.client.chat.completions.create(
            model="smol", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert [text for text in texts if text] == ["Hello", ",", " wörld", "!"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 11
    assert len({chunk.id for chunk in chunks}) == 1


async def test_words_arrive_while_later_ones_are_still_being_made(door: Door) -> None:
    async with served(door) as worker:
        worker.hold.clear()
        stream = await door.client.chat.completions.create(model="smol", messages=HELLO, stream=True)
        pieces = aiter(stream)
        first = [(await anext(pieces)).choices[0].delta.content for _ in range(2)]
        assert first == ["", "Hello"]
        worker.hold.set()
        assert "".join([one.choices[0].delta.content or "" async for one in pieces]) == ", wörld!"


async def test_max_tokens_ends_an_answer_by_length(door: Door) -> None:
    async with served(door):
        answer = await door.client.chat.completions.create(model="smol", messages=HELLO, max_completion_tokens=2)
    assert answer.choices[0].message.content == "Hello,"
    assert answer.choices[0].finish_reason == "length"


async def test_a_completion_is_answered_whole_and_streamed(door: Door) -> None:
    async with served(door) as worker:
        whole = await door.client.completions.create(model="smol", prompt=["Once"], stop=["\n"])
        stream = await door.client.completions.create(model="smol", prompt=[1, 2, 3], stream=True)
        chunks = [chunk async for chunk in stream]
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks) == "Hello, wörld!"
    assert whole.object == chunks[0].object == "text_completion"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert [one.request.prompt for one in worker.seen] == ["Once", (1, 2, 3)]
    assert worker.seen[0].request.sampling.stop == ("\n",)


async def test_logprobs_come_in_the_shape_of_each_endpoint(door: Door) -> None:
    async with served(door):
        chat = await door.client.chat.completions.create(
            model="smol", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=3
        )
        plain = await door.client.completions.create(model="smol", prompt="x", logprobs=2, max_tokens=3)
        streamed = await door.client.chat.completions.create(
            model="smol", messages=HELLO, logprobs=True, max_tokens=3, stream=True
        )
        pieces = [one.choices[0].logprobs async for one in streamed]
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert [one.token for one in content] == ["Hello", ",", " wörld"]
    assert [len(one.top_logprobs) for one in content] == [2, 2, 2]
    assert bytes(content[2].bytes or []).decode() == " wörld"
    logprobs = plain.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["Hello", ",", " wörld"]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.text_offset == [0, 5, 6]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"Hello": -0.5, "Hello0": -1.0}
    assert [one.content[0].token for one in pieces if one and one.content] == ["Hello", ",", " wörld"]


async def test_the_priority_tier_goes_to_the_high_queue(door: Door) -> None:
    async with served(door) as worker:
        await door.client.chat.completions.create(model="smol", messages=HELLO, service_tier="priority")
        await door.client.chat.completions.create(model="smol", messages=HELLO)
    assert [one.priority for one in worker.seen] == [Priority.HIGH, Priority.NORMAL]


async def test_many_streams_at_once_keep_their_own_words(door: Door) -> None:
    def echo(request: Any) -> list[str]:
        return [f"{request.messages[0].content}-{n} " for n in range(20)]

    async def ask(name: str) -> str:
        stream = await door.client.chat.completions.create(
            model="smol", messages=[{"role": "user", "content": name}], stream=True
        )
        return "".join([one.choices[0].delta.content or "" async for one in stream])

    async with served(door, script=echo):
        answers = await asyncio.gather(*(ask(f"c{n}") for n in range(24)))
    assert answers == ["".join(f"c{n}-{at} " for at in range(20)) for n in range(24)]


async def test_a_client_that_leaves_cancels_its_request(door: Door, broker: InProcessBroker) -> None:
    broker.declare(QueueSpec(name="cancels", bindings=(f"{RequestCancelled.topic}.#",)))
    async with served(door) as worker:
        worker.hold.clear()
        stream = await door.client.chat.completions.create(model="smol", messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()
        whole = asyncio.ensure_future(door.client.chat.completions.create(model="smol", messages=HELLO))
        await door.until(lambda: asyncio.sleep(0, len(worker.seen) == 2))
        whole.cancel()
        await door.until(lambda: asyncio.sleep(0, len(broker.dead_letters("cancels")) == 2))
    cancelled = {json.loads(one.body)["request_id"] for one in broker.dead_letters("cancels")}
    assert cancelled == {str(one.request.request_id) for one in worker.seen}


async def test_models_are_listed_and_found_by_name_and_by_deployment(door: Door) -> None:
    await door.http.post("/v1/models", json={"name": "org/other-1.5", "source": "x"})
    deployment_id = await door.deploy()
    listed = {one.id: one for one in (await door.client.models.list()).data}
    assert set(listed) == {"smol", "org/other-1.5"}
    assert listed["smol"].model_dump()["ready"] is True
    assert listed["org/other-1.5"].model_dump()["ready"] is False
    assert (await door.client.models.retrieve("org/other-1.5")).id == "org/other-1.5"
    assert (await door.client.models.retrieve(str(deployment_id))).owned_by == "maveriq"
    with pytest.raises(openai.NotFoundError, match="smol"):
        await door.client.models.retrieve("smoll")


async def test_a_deployment_can_be_asked_by_its_id(door: Door) -> None:
    deployment_id = await door.deploy()
    await door.deploy()
    worker = FakeWorker(door.bus)
    await worker.serve(deployment_id)
    for _ in range(3):
        answer = await door.client.chat.completions.create(model=str(deployment_id), messages=HELLO)
        assert answer.system_fingerprint == f"deployment-{deployment_id}"
    await worker.stop()


# --- what goes wrong with a request


async def test_an_unknown_model_is_404_and_names_the_known_ones(door: Door) -> None:
    await door.deploy()
    with pytest.raises(openai.NotFoundError) as unknown:
        await door.client.chat.completions.create(model="smoll", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    assert "smol" in unknown.value.message
    await door.http.post("/v1/models", json={"name": "idle", "source": "x"})
    with pytest.raises(openai.NotFoundError, match="registered only"):
        await door.client.chat.completions.create(model="idle", messages=HELLO)


async def test_a_model_that_is_not_ready_yet_is_503_with_retry_after(door: Door) -> None:
    await door.http.post("/v1/models", json=MODEL)
    await door.http.post("/v1/intents", json={"model": "smol"})

    async def known() -> bool:
        return (await door.client.models.retrieve("smol")).model_dump()["deployments"] != []

    await door.until(known)
    with pytest.raises(openai.InternalServerError) as waiting:
        await door.client.chat.completions.create(model="smol", messages=HELLO)
    assert waiting.value.status_code == 503
    assert waiting.value.code == "deployment_not_ready"
    assert float(waiting.value.response.headers["Retry-After"]) > 0


async def test_unsupported_fields_are_400_with_their_name(door: Door) -> None:
    await door.deploy()
    with pytest.raises(openai.BadRequestError) as refused:
        await door.client.chat.completions.create(model="smol", messages=HELLO, n=2)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="did you mean temperature"):
        await door.client.chat.completions.create(model="smol", messages=HELLO, extra_body={"temprature": 1})


CODES = [
    (ErrorCode.CONTEXT_EXCEEDED, 400, "context_length_exceeded"),
    (ErrorCode.INVALID_REQUEST, 400, None),
    (ErrorCode.ENGINE_FAILED, 500, "engine_failed"),
    (ErrorCode.DEADLINE_EXCEEDED, 504, "deadline_exceeded"),
    (ErrorCode.DEPLOYMENT_GONE, 503, "deployment_gone"),
]


async def test_a_workers_error_has_its_status_streamed_or_not(door: Door) -> None:
    for code, status, name in CODES:
        error = InferenceError(code=code, field="messages", problem="too long", remedy="shorten it")
        async with served(door, fail=lambda request, error=error: error):
            for stream in (False, True):
                answer = await door.http.post(
                    "/v1/chat/completions", json={"model": "smol", "messages": HELLO, "stream": stream}
                )
                assert answer.status_code == status
                assert answer.json()["error"]["code"] == name
                assert answer.json()["error"]["param"] == "messages"
                assert "shorten it" in answer.json()["error"]["message"]
        for listed in (await door.http.get("/v1/deployments")).json()["data"]:
            await door.bus.publish(DeploymentReleased(deployment_id=UUID(listed["deployment_id"])))
        await door.until(lambda: none_serves(door))


async def none_serves(door: Door) -> bool:
    return (await door.client.models.retrieve("smol")).model_dump()["deployments"] == []


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(door: Door) -> None:
    error = InferenceError(code=ErrorCode.ENGINE_FAILED, problem="died", remedy="send it again")
    async with served(door, fail=lambda request: error, fail_after_tokens=2):
        stream = await door.client.chat.completions.create(model="smol", messages=HELLO, stream=True)
        said: list[str] = []
        with pytest.raises(openai.APIError, match="died; send it again"):
            async for chunk in stream:
                said.append(chunk.choices[0].delta.content or "")
    assert "".join(said) == "Hello,"


async def test_a_passed_deadline_is_504_and_an_absurd_one_400(door: Door) -> None:
    await door.deploy()  # nobody consumes its queue
    with pytest.raises(openai.InternalServerError) as late:
        await door.client.chat.completions.create(
            model="smol", messages=HELLO, extra_headers={"X-Request-Timeout-S": "0.1"}
        )
    assert late.value.status_code == 504
    assert late.value.code == "deadline_exceeded"
    for absurd in ("soon", "-1", "nan", "1e9"):
        with pytest.raises(openai.BadRequestError) as refused:
            await door.client.completions.create(model="smol", prompt="x", extra_query={"timeout": absurd})
        assert refused.value.param == "timeout"


async def test_a_full_queue_is_429_with_retry_after(door: Door, broker: InProcessBroker) -> None:
    deployment_id = await door.deploy()
    queue = broker.queues[f"requests.{deployment_id}.normal"]
    queue.waiting.extend([None] * REQUEST_QUEUE_LENGTH)  # type: ignore[list-item]
    with pytest.raises(openai.RateLimitError) as full:
        await door.client.chat.completions.create(model="smol", messages=HELLO)
    queue.waiting.clear()
    assert full.value.code == "rate_limit_exceeded"
    assert float(full.value.response.headers["Retry-After"]) > 0


async def test_requests_to_a_released_deployment_are_answered(door: Door, broker: InProcessBroker) -> None:
    deployment_id = await door.deploy()
    waiting = asyncio.ensure_future(door.client.chat.completions.create(model="smol", messages=HELLO))
    queue = broker.queues[f"requests.{deployment_id}.normal"]
    await door.until(lambda: asyncio.sleep(0, len(queue.waiting) == 1))
    await door.bus.publish(DeploymentReleased(deployment_id=deployment_id))
    with pytest.raises(openai.InternalServerError) as gone:
        await waiting
    assert gone.value.code == "deployment_gone"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/intents", "/v1/models"])
async def test_bodies_that_are_no_json_object_are_400(door: Door, path: str) -> None:
    for body in (b"{not json", b"[]", b"", b"\xff", b"[" * 100_000, b'{"model": NaN}'):
        answer = await door.http.post(path, content=body)
        assert answer.status_code == 400, body[:20]
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["error"]["message"]


async def test_a_huge_body_is_413(door: Door) -> None:
    answer = await door.http.post("/v1/completions", content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413


async def test_unknown_paths_and_methods_answer_in_the_same_shape(door: Door) -> None:
    assert (await door.http.get("/v1/nothing")).json()["error"]["code"] == "unknown_url"
    answer = await door.http.put("/v1/intents")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


# --- intents and deployments


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


# --- processes


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
    await following.aclose()
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
