"""How one replica answers its requests, on the in-process bus with an engine that the test steps."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID, uuid4

import pytest

from maveriq.bus import Bus, Encoded, Mailbox
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.contracts import (
    ChunksProduced,
    ErrorCode,
    FinishReason,
    Message,
    Priority,
    RequestCancelled,
    RequestSubmitted,
)
from maveriq_worker.serving import Serving
from tests.unit.worker.engine_double import PROMPT_TOKENS, Heard, SteppedEngine, request, until


@dataclass
class Scene:
    broker: InProcessBroker
    producer: Bus
    worker: "CountingBus"
    engine: SteppedEngine
    serving: Serving
    deployment_id: UUID
    heard: Heard = field(default_factory=Heard)
    mailbox: Mailbox | None = None

    async def submit(
        self, *, tokens: int = 3, prompt: str = "hello", priority: Priority = Priority.NORMAL, deadline_s: float = 60.0
    ) -> RequestSubmitted:
        assert self.mailbox is not None
        asked = request(self.deployment_id, tokens=tokens, prompt=prompt)
        await self.producer.submit(asked, reply_to=self.mailbox.address, priority=priority, deadline_s=deadline_s)
        return asked

    async def steps_until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self.engine.step()
                await asyncio.sleep(0.001)

    async def settled(self, generating: list[RequestSubmitted], *, num_waiting: int) -> None:
        """Until the engine is at these, and the queues hold so many that the replica has no room for."""
        wanted = {one.request_id for one in generating}
        await until(lambda: self.engine.asked.keys() == wanted and self.num_waiting() == num_waiting)

    def num_waiting(self) -> int:
        """Requests in the queues, in nobody's hands."""
        queues = [self.broker.queues[f"requests.{self.deployment_id}.{p}"] for p in Priority]
        return sum(len(queue.waiting) for queue in queues)


class CountingBus(InProcessBus):
    def __init__(self, broker: InProcessBroker) -> None:
        super().__init__(broker)
        self.sent: list[tuple[str, ChunksProduced, bool]] = []

    async def send(self, address: str, message: Message | Encoded, *, confirm: bool) -> None:
        assert isinstance(message, Encoded)
        self.sent.append((address, ChunksProduced.model_validate_json(message.body), confirm))
        await super().send(address, message, confirm=confirm)


@pytest.fixture
async def scene(broker: InProcessBroker) -> AsyncIterator[Scene]:
    async with serving_scene(broker, slots=2) as made:
        yield made


class serving_scene:
    def __init__(self, broker: InProcessBroker, slots: int) -> None:
        self._broker, self._slots = broker, slots

    async def __aenter__(self) -> Scene:
        producer, worker, engine, deployment_id = (
            InProcessBus(self._broker), CountingBus(self._broker), SteppedEngine(), uuid4(),
        )  # fmt: skip
        await producer.open_requests(deployment_id)
        serving = Serving(worker, engine, deployment_id, self._slots, model="smol")
        self._scene = Scene(self._broker, producer, worker, engine, serving, deployment_id)
        self._scene.mailbox = await producer.mailbox(self._scene.heard)
        await serving.open()
        return self._scene

    async def __aexit__(self, *_: object) -> None:
        await self._scene.serving.give_back()
        await self._scene.worker.close()
        await self._scene.producer.close()


async def test_a_request_is_answered_chunk_by_chunk_and_the_last_has_usage_and_timing(scene: Scene) -> None:
    asked = await scene.submit(tokens=3)
    await scene.steps_until(lambda: len(scene.heard.chunks) == 3)
    first = asked.request_id.int % 2**63 % 1000
    assert [c.token_ids for c in scene.heard.chunks] == [(first,), (first + 1,), (first + 2,)]
    assert [c.index for c in scene.heard.chunks] == [0, 1, 2]
    last = scene.heard.chunks[-1]
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (PROMPT_TOKENS, 3)
    assert last.timing is not None
    assert [c.finish_reason for c in scene.heard.chunks[:-1]] == [None, None]
    (answered,) = scene.serving.sizes.take()
    assert (answered.input_tokens, answered.output_tokens, answered.count) == (PROMPT_TOKENS, 3, 1)


async def test_one_step_is_one_message_a_client(broker: InProcessBroker) -> None:
    async with serving_scene(broker, slots=64) as scene:
        others = Heard()
        other = await scene.producer.mailbox(others)
        for _ in range(32):
            await scene.submit(tokens=3)
            await scene.producer.submit(request(scene.deployment_id, tokens=3), reply_to=other.address)
        await until(lambda: len(scene.engine.asked) == 64)
        for num_messages in (1, 2, 3):
            scene.engine.step()
            await until(partial(lambda n: len(scene.heard.messages) == len(others.messages) == n, num_messages))
            if num_messages < 3:
                await until(lambda: len(scene.engine.asked) == 64)
        assert [len(m.chunks) for _, m, _ in scene.worker.sent] == [32] * 6
        assert len(scene.heard.chunks) == len(others.chunks) == 96


async def test_only_messages_with_a_last_chunk_are_confirmed(scene: Scene) -> None:
    await scene.submit(tokens=2)
    await scene.submit(tokens=3)
    await until(lambda: len(scene.engine.asked) == 2)
    for n in (1, 2, 3):
        scene.engine.step()
        await until(partial(lambda n: len(scene.heard.messages) == n, n))
        await asyncio.sleep(0.005)
    assert [confirm for _, _, confirm in scene.worker.sent] == [False, True, True]


async def test_high_is_taken_before_normal_before_low_once_a_slot_is_free(scene: Scene) -> None:
    running = [await scene.submit(tokens=1) for _ in range(2)]
    await scene.settled(running, num_waiting=0)
    low = [await scene.submit(tokens=1, priority=Priority.LOW) for _ in range(2)]
    normal = [await scene.submit(tokens=1) for _ in range(2)]
    high = [await scene.submit(tokens=1, priority=Priority.HIGH) for _ in range(2)]
    # as many of a priority as there are slots are in hand: the other normal ones come once those that run are acked
    for generating, num_waiting in ((running, 2), (high, 0), (normal, 0), (low, 0)):
        await scene.settled(generating, num_waiting=num_waiting)
        scene.engine.step()
    await until(lambda: len(scene.heard.chunks) == 8)
    order = [g.request_id for g in scene.engine.generations]
    assert order == [r.request_id for r in (*running, *high, *normal, *low)]


async def test_no_more_requests_generate_than_there_are_slots(scene: Scene) -> None:
    for _ in range(5):
        await scene.submit()
    await asyncio.sleep(0.02)
    assert len(scene.engine.asked) == 2
    await scene.steps_until(lambda: sum(c.finish_reason is not None for c in scene.heard.chunks) == 5)


async def test_a_seed_that_is_given_is_kept_and_one_that_is_not_comes_from_the_request_id(scene: Scene) -> None:
    assert scene.mailbox is not None
    given = request(scene.deployment_id, seed=-5)
    await scene.producer.submit(given, reply_to=scene.mailbox.address)
    derived = await scene.submit()
    await until(lambda: len(scene.engine.generations) == 2)
    assert [g.seed for g in scene.engine.generations] == [-5, derived.request_id.int % 2**63]


async def test_a_refused_request_is_answered_with_the_reason_and_not_given_to_another(scene: Scene) -> None:
    await scene.submit(prompt="refuse")
    await until(lambda: len(scene.heard.chunks) == 1)
    (chunk,) = scene.heard.chunks
    assert chunk.finish_reason is FinishReason.ERROR
    assert chunk.error is not None
    assert (chunk.error.code, chunk.error.field) == (ErrorCode.CONTEXT_EXCEEDED, "prompt")
    await scene.serving.give_back()
    assert scene.num_waiting() == 0


async def test_a_deadline_that_passes_while_generating_ends_the_answer_with_an_error(scene: Scene) -> None:
    await scene.submit(tokens=100, deadline_s=0.15)
    await until(lambda: len(scene.engine.asked) == 1)
    scene.engine.step()
    await until(lambda: len(scene.heard.chunks) == 2)
    last = scene.heard.chunks[-1]
    assert last.index == 1
    assert last.error is not None
    assert last.error.code is ErrorCode.DEADLINE_EXCEEDED
    await until(lambda: not scene.engine.asked)


async def test_a_request_that_arrives_late_is_answered_and_never_generated(broker: InProcessBroker) -> None:
    producer, worker, engine, deployment_id = InProcessBus(broker), InProcessBus(broker), SteppedEngine(), uuid4()
    await producer.open_requests(deployment_id)
    heard = Heard()
    mailbox = await producer.mailbox(heard)
    serving = Serving(worker, engine, deployment_id, 2, now=lambda: time.time() + 1000)
    await serving.open()
    await producer.submit(request(deployment_id), reply_to=mailbox.address, deadline_s=500)
    await until(lambda: len(heard.chunks) == 1)
    assert heard.chunks[0].error is not None
    assert heard.chunks[0].error.code is ErrorCode.DEADLINE_EXCEEDED
    assert not engine.generations
    await serving.give_back()
    await worker.close()
    await producer.close()


async def test_a_deadline_passes_also_for_a_request_that_waits_for_a_slot(scene: Scene) -> None:
    await scene.submit(tokens=100)
    await scene.submit(tokens=100)
    await until(lambda: len(scene.engine.asked) == 2)
    late = await scene.submit(deadline_s=0.1, priority=Priority.HIGH)  # in hand, beside the normal ones
    await until(lambda: len(scene.heard.of(late.request_id)) == 1)
    assert len(scene.engine.generations) == 2


async def test_a_cancelled_request_frees_its_slot_and_is_answered_with_cancelled(scene: Scene) -> None:
    asked = await scene.submit(tokens=100)
    await until(lambda: len(scene.engine.asked) == 1)
    scene.engine.step()
    await until(lambda: len(scene.heard.chunks) == 1)
    await scene.producer.publish(RequestCancelled(deployment_id=scene.deployment_id, request_id=asked.request_id))
    await until(lambda: len(scene.heard.chunks) == 2)
    last = scene.heard.chunks[-1]
    assert (last.finish_reason, last.index) == (FinishReason.CANCELLED, 1)
    assert last.usage is not None
    assert last.usage.completion_tokens == 1
    assert not scene.engine.asked
    await scene.serving.give_back()
    assert scene.num_waiting() == 0


async def test_a_request_cancelled_before_it_is_taken_is_not_generated(scene: Scene) -> None:
    asked = request(scene.deployment_id)
    assert scene.mailbox is not None
    await scene.producer.publish(RequestCancelled(deployment_id=scene.deployment_id, request_id=asked.request_id))
    await asyncio.sleep(0.01)
    await scene.producer.submit(asked, reply_to=scene.mailbox.address)
    await until(lambda: len(scene.heard.chunks) == 1)
    assert scene.heard.chunks[0].finish_reason is FinishReason.CANCELLED
    assert not scene.engine.generations


async def test_when_a_client_is_gone_all_its_requests_are_aborted_and_nobody_elses(scene: Scene) -> None:
    leaving = await scene.producer.mailbox(Heard())
    short, long = request(scene.deployment_id, tokens=2), request(scene.deployment_id, tokens=1000)
    await scene.producer.submit(short, reply_to=leaving.address)
    await scene.producer.submit(long, reply_to=leaving.address)
    await until(lambda: len(scene.engine.asked) == 2)
    await leaving.close()
    staying = await scene.submit(tokens=3)
    await scene.steps_until(lambda: len(scene.heard.of(staying.request_id)) == 3)
    await until(lambda: not scene.engine.asked)
    await scene.serving.give_back()
    assert scene.num_waiting() == 0


async def test_when_a_client_is_gone_long_before_its_first_last_chunk_it_is_noticed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maveriq_worker.outbox.CONFIRM_EVERY_S", 0.02)
    leaving = await scene.producer.mailbox(Heard())
    await scene.producer.submit(request(scene.deployment_id, tokens=100_000), reply_to=leaving.address)
    await until(lambda: len(scene.engine.asked) == 1)
    await leaving.close()
    await scene.steps_until(lambda: not scene.engine.asked)


async def test_when_the_engine_dies_every_request_goes_back_unanswered_and_is_answered_the_same_by_the_next(
    scene: Scene,
) -> None:
    asked = [await scene.submit(tokens=3) for _ in range(4)]
    await until(lambda: len(scene.engine.asked) == 2)
    scene.engine.step()
    await until(lambda: len(scene.heard.chunks) == 2)
    scene.engine.die()
    assert await scene.serving.failed == "killed"
    await scene.serving.give_back()
    assert scene.num_waiting() == 4
    assert all(c.finish_reason is None for c in scene.heard.chunks)
    first = {c.request_id: c.token_ids for c in scene.heard.chunks}

    worker, engine = InProcessBus(scene.broker), SteppedEngine()
    following = Serving(worker, engine, scene.deployment_id, 2)
    await following.open()
    async with asyncio.timeout(10):
        while sum(c.finish_reason is not None for c in scene.heard.chunks) < 4:
            engine.step()
            await asyncio.sleep(0.001)
    for one in asked:
        attempt = 2 if one.request_id in first else 1
        again = [c for c in scene.heard.of(one.request_id) if c.attempt == attempt]
        assert [c.index for c in again] == [0, 1, 2]
        assert first.get(one.request_id, again[0].token_ids) == again[0].token_ids
    await following.give_back()
    await worker.close()


async def test_a_request_that_meets_a_bug_is_tried_again_and_at_last_given_up_by_the_broker(scene: Scene) -> None:
    await scene.submit(prompt="bug")
    await until(lambda: len(scene.engine.generations) == 5)
    await until(lambda: scene.num_waiting() == 0)
    other = await scene.submit(tokens=1)
    await scene.steps_until(lambda: len(scene.heard.of(other.request_id)) == 1)


async def test_a_drain_answers_what_is_queued_and_then_takes_no_more(scene: Scene) -> None:
    asked = [await scene.submit(tokens=2) for _ in range(5)]
    draining = asyncio.create_task(scene.serving.drain(quiet_s=0.05, limit_s=60))
    await scene.steps_until(draining.done)
    assert {c.request_id for c in scene.heard.chunks if c.finish_reason} == {a.request_id for a in asked}
    await scene.submit()
    await asyncio.sleep(0.01)
    assert scene.num_waiting() == 1


async def test_a_drain_has_an_end_though_requests_keep_coming(scene: Scene) -> None:
    draining = asyncio.create_task(scene.serving.drain(quiet_s=5, limit_s=0.1))
    while not draining.done():
        await scene.submit(tokens=1)
        scene.engine.step()
        await asyncio.sleep(0.001)


async def test_a_request_handed_out_again_to_the_same_replica_starts_again(scene: Scene) -> None:
    asked = await scene.submit(tokens=2)
    await until(lambda: len(scene.engine.asked) == 1)
    assert scene.mailbox is not None
    await scene.producer.submit(asked, reply_to=scene.mailbox.address)
    await until(lambda: len(scene.engine.generations) == 2)
    await scene.steps_until(lambda: any(c.finish_reason for c in scene.heard.chunks))
    assert [c.index for c in scene.heard.chunks] == [0, 1]
