"""Inference over HTTP as its users see it: the official openai client, unmodified."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.queues import QueueSpec
from maveriq.contracts import (
    Priority,
    RequestCancelled,
)
from tests.door import HELLO, Door, quiet_ingress, served
from tests.fakes import FakeWorker


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus) -> AsyncIterator[Door]:
    async with quiet_ingress(redis_url, bus) as opened:
        yield opened


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
