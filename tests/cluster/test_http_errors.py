"""Every way in which an HTTP request goes wrong has its status and says what to do."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import openai
import pytest

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.contracts import (
    DeploymentReleased,
    ErrorCode,
    InferenceError,
)
from maveriq.topology import REQUEST_QUEUE_LENGTH
from maveriq_ingress.bodies import MAX_BODY_BYTES
from tests.door import HELLO, MODEL, Door, none_serves, quiet_ingress, served


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus) -> AsyncIterator[Door]:
    async with quiet_ingress(redis_url, bus) as opened:
        yield opened


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


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_web_page_of_another_site_cannot_have_a_browser_ask_for_anything(door: Door, kind: str) -> None:
    """Of these types browsers send what any page tells them to; they ask first before they send JSON, and hear no."""
    page = {"Origin": "https://elsewhere.example", "Content-Type": kind}
    for path in ("/v1/models", "/v1/intents", "/v1/chat/completions", "/v1/calibrations", "/v1/defrag"):
        answer = await door.http.post(path, content=b"{}", headers=page)
        assert (answer.status_code, answer.json()["error"]["param"]) == (415, "Content-Type"), path
    asked_first = {"Origin": page["Origin"], "Access-Control-Request-Method": "POST"}
    answer = await door.http.options("/v1/models", headers=asked_first)
    assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers
    ours = await door.http.post("/v1/models", json=MODEL, headers={"Origin": "http://door"})
    assert ours.status_code == 201


async def test_a_name_in_a_path_that_can_be_no_models_is_refused(door: Door) -> None:
    answer = await door.http.post(f"/v1/models/{'x' * 201}/accuracy", json={"text": "a" * 300})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


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
    for path, remedy in (
        ("/v1/intent", "mean /v1/intents?"),
        ("/chat/completions", "mean /v1/chat/completions?"),
        ("/x", "known are"),
    ):
        error = (await door.http.post(path)).json()["error"]
        assert error["code"] == "unknown_url" and remedy in error["message"]
    answer = await door.http.put("/v1/intents")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "send POST" in answer.json()["error"]["message"]
