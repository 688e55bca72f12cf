"""What every broker must do for requests: bounds, priorities, deadlines, and nothing dropped. Runs on both."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from maveriq.bus import DeadRequest, QueueFull, RequestDelivery, Unroutable
from maveriq.bus import queues as bounds
from maveriq.bus.connected import ConnectedBus
from maveriq.bus.envelope import Envelope, deadline
from maveriq.contracts import Message, MessageRefused, Priority, RequestSubmitted
from maveriq.topology import MAX_ATTEMPTS, MAX_DEADLINE_S, WORKER, request_queue
from tests.broker.sides import Side, until


@pytest.fixture
async def deployment_id(side: Side) -> AsyncIterator[UUID]:
    """A deployment whose request queues are open, until the test is over."""
    bus, deployment_id = await side.bus(), uuid4()
    await bus.open_requests(deployment_id)
    yield deployment_id
    for priority in Priority:
        await side.delete(request_queue(deployment_id, priority))


def request_to(deployment_id: UUID) -> RequestSubmitted:
    return RequestSubmitted(deployment_id=deployment_id, request_id=uuid4(), prompt="Hello")


class Taken(list[RequestDelivery]):
    """What a consumer was handed."""

    @property
    def requests(self) -> list[RequestSubmitted]:
        return [delivery.request for delivery in self]


async def test_a_request_comes_with_its_reply_address_and_deadline(side: Side, deployment_id: UUID) -> None:
    bus, taken, request = await side.bus(), Taken(), request_to(deployment_id)
    await bus.consume_requests(deployment_id, taken.append, slots=2)
    await bus.submit(request, reply_to="client.1", deadline_s=30, priority=Priority.HIGH)
    await until(lambda: taken)

    (delivery,) = taken
    assert (delivery.request, delivery.reply_to, delivery.attempt) == (request, "client.1", 1)
    assert delivery.priority is Priority.HIGH
    assert 0 < delivery.deadline - time.time() <= 30.1
    await delivery.ack()
    await bus.close()
    assert await side.waiting(request_queue(deployment_id, Priority.HIGH)) == []


async def test_no_more_are_in_hand_than_there_are_slots(side: Side, deployment_id: UUID) -> None:
    bus, taken = await side.bus(), Taken()
    for _ in range(4):
        await bus.submit(request_to(deployment_id), reply_to="c")
    await bus.consume_requests(deployment_id, taken.append, slots=2)
    await until(lambda: len(taken) == 2)
    await asyncio.sleep(0.1)
    assert len(taken) == 2
    await taken[0].ack()
    await until(lambda: len(taken) == 3)


async def test_a_high_request_is_not_held_up_by_normal_ones(side: Side, deployment_id: UUID) -> None:
    bus, taken = await side.bus(), Taken()
    for _ in range(3):
        await bus.submit(request_to(deployment_id), reply_to="c")
    await bus.consume_requests(deployment_id, taken.append, slots=1)
    await until(lambda: taken)
    urgent = request_to(deployment_id)
    await bus.submit(urgent, reply_to="c", priority=Priority.HIGH)
    await until(lambda: len(taken) == 2)
    assert taken[1].request == urgent


async def test_of_waiting_requests_the_high_ones_are_handed_out_first(side: Side, deployment_id: UUID) -> None:
    bus, taken = await side.bus(), Taken()
    for priority in (Priority.NORMAL, Priority.HIGH):
        await bus.submit(request_to(deployment_id), reply_to="c", priority=priority)
    await bus.consume_requests(deployment_id, taken.append, slots=1)
    await until(lambda: len(taken) == 2)
    assert [delivery.priority for delivery in taken] == [Priority.HIGH, Priority.NORMAL]


async def test_the_requests_of_a_dead_worker_go_to_the_next(side: Side, deployment_id: UUID) -> None:
    dying, taken, request = await side.bus(), Taken(), request_to(deployment_id)
    await dying.consume_requests(deployment_id, taken.append, slots=2)
    await dying.submit(request, reply_to="c")
    await until(lambda: taken)
    await dying.close()

    again = Taken()
    await (await side.bus()).consume_requests(deployment_id, again.append, slots=2)
    await until(lambda: again)
    assert (again[0].request, again[0].attempt) == (request, 2)


async def test_a_requeued_request_is_the_next_one_handed_out(side: Side, deployment_id: UUID) -> None:
    bus, taken = await side.bus(), Taken()
    first, second = request_to(deployment_id), request_to(deployment_id)
    for request in (first, second):
        await bus.submit(request, reply_to="c")
    await bus.consume_requests(deployment_id, taken.append, slots=1)
    await until(lambda: taken)
    await taken[0].requeue()
    await until(lambda: len(taken) == 2)
    assert (taken.requests, taken[1].attempt) == ([first, first], 2)


async def test_a_cancelled_consumer_takes_no_more_and_keeps_what_it_has(side: Side, deployment_id: UUID) -> None:
    bus, taken = await side.bus(), Taken()
    consumer = await bus.consume_requests(deployment_id, taken.append, slots=8)
    await bus.submit(request_to(deployment_id), reply_to="c")
    await until(lambda: taken)
    await consumer.cancel()
    await bus.submit(request_to(deployment_id), reply_to="c")
    await asyncio.sleep(0.05)
    assert len(taken) == 1
    await taken[0].ack()
    await consumer.cancel()
    assert len(await side.waiting(request_queue(deployment_id, Priority.NORMAL))) == 1


async def test_a_request_that_waits_too_long_is_handed_over_to_be_answered(side: Side, deployment_id: UUID) -> None:
    bus, request = await side.bus(), request_to(deployment_id)
    dead = await _dead_requests(bus)
    await bus.submit(request, reply_to="client.1", deadline_s=0.05)
    await until(lambda: dead)
    assert [(d.request, d.reply_to, d.reason) for d in dead] == [(request, "client.1", "expired")]


async def test_a_request_handed_out_too_often_is_handed_over_to_be_answered(side: Side, deployment_id: UUID) -> None:
    bus, attempts = await side.bus(), list[int]()
    dead = await _dead_requests(bus)

    given_back: list[asyncio.Future[None]] = []

    def give_back(delivery: RequestDelivery) -> None:
        attempts.append(delivery.attempt)
        given_back.append(asyncio.ensure_future(delivery.requeue()))

    await bus.consume_requests(deployment_id, give_back, slots=1)
    request = request_to(deployment_id)
    await bus.submit(request, reply_to="client.1")
    await until(lambda: dead)
    assert attempts == list(range(1, MAX_ATTEMPTS + 1))
    assert [(d.request, d.attempt, d.reason) for d in dead] == [(request, MAX_ATTEMPTS, "delivery_limit")]


async def test_a_dead_request_whose_answer_fails_is_answered_later(side: Side, deployment_id: UUID) -> None:
    bus, tries = await side.bus(), list[UUID]()

    async def answer(dead: DeadRequest) -> None:
        tries.append(dead.request.request_id)
        if len(tries) == 1:
            raise ConnectionError("the store is away")

    await bus.consume_dead_requests(answer)
    request = request_to(deployment_id)
    await bus.submit(request, reply_to="c", deadline_s=0)
    await until(lambda: tries == [request.request_id] * 2)


async def test_a_full_request_queue_refuses_at_once(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "REQUEST_QUEUE_LENGTH", 3)
    bus, full = await side.bus(), uuid4()
    await bus.open_requests(full)
    with pytest.raises(QueueFull):
        for _ in range(10):  # RabbitMQ's bound is a little soft
            await bus.submit(request_to(full), reply_to="c")
    await bus.submit(request_to(full), reply_to="c", priority=Priority.HIGH)  # has its own bound
    for priority in Priority:
        await side.delete(request_queue(full, priority))


async def test_a_request_to_no_deployment_is_unroutable(side: Side) -> None:
    bus = await side.bus()
    with pytest.raises(Unroutable):
        await bus.submit(request_to(uuid4()), reply_to="c")
    with pytest.raises(Unroutable):
        await bus.consume_requests(uuid4(), Taken().append, slots=1)


async def test_closing_hands_over_what_waits_and_can_be_done_again(side: Side, deployment_id: UUID) -> None:
    bus, worker, taken = await side.bus(), await side.bus(), Taken()
    await worker.consume_requests(deployment_id, taken.append, slots=1)
    requests = [request_to(deployment_id) for _ in range(4)]
    for request in requests:
        await bus.submit(request, reply_to="client.1")
    await until(lambda: taken)
    closed: list[DeadRequest] = []

    async def answer(dead: DeadRequest) -> None:
        closed.append(dead)

    await bus.close_requests(deployment_id, answer)
    assert [(d.request, d.reason, d.reply_to) for d in closed] == [
        (request, "closed", "client.1") for request in requests[1:]
    ]
    await bus.close_requests(deployment_id, answer)
    await bus.close_requests(uuid4(), answer)
    assert len(closed) == 3
    await taken[0].ack()  # answered meanwhile: nobody minds
    with pytest.raises(Unroutable):
        await bus.submit(request_to(deployment_id), reply_to="c")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"promt": "typo"}, "promt"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"sampling": {"max_tokens": 10**12}}, "sampling.max_tokens"),
        ({"deployment_id": str(uuid4())}, "deployment_id"),
        ({"prompt": None}, "prompt"),
    ],
)
async def test_a_bad_request_is_refused_with_the_field_and_the_remedy(
    side: Side, deployment_id: UUID, change: dict[str, object], field: str
) -> None:
    bus, taken, heard = await side.bus(), Taken(), list[Message]()
    await bus.consume_requests(deployment_id, taken.append, slots=1)
    mailbox = await (await side.bus()).mailbox(heard.append)
    request = request_to(deployment_id)
    body = json.dumps({**request.model_dump(mode="json"), **change}).encode()
    envelope = Envelope(body, message_id=str(request.request_id), reply_to=mailbox.address)
    await side.post(envelope, request_queue(deployment_id, Priority.NORMAL), exchange="")
    await until(lambda: heard)

    (refused,) = heard
    assert isinstance(refused, MessageRefused)
    assert (refused.refused_id, refused.faults[0].field) == (str(request.request_id), field)
    assert refused.faults[0].remedy
    async with asyncio.timeout(10):
        while body not in [dead.body for dead in await side.waiting(WORKER.dead_queue)]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert taken == []


def test_the_deadline_is_the_header_else_the_expiration_else_the_most_that_is_allowed() -> None:
    now = 1_000_000.0
    assert deadline(Envelope(b"", headers={"deadline": now + 7}, expires_s=3), now) == now + 7
    assert deadline(Envelope(b"", headers={"deadline": str(now + 1e9)}), now) == now + MAX_DEADLINE_S
    assert deadline(Envelope(b"", expires_s=3, sent_at=now - 1), now) == now + 2
    assert deadline(Envelope(b"", expires_s=3), now) == now + 3
    assert deadline(Envelope(b"", headers={"deadline": "soon"}), now) == now + MAX_DEADLINE_S


async def _dead_requests(bus: ConnectedBus) -> list[DeadRequest]:
    """Those that arrive from now on."""
    dead: list[DeadRequest] = []

    async def answer(request: DeadRequest) -> None:
        dead.append(request)

    await bus.consume_dead_requests(answer)
    await asyncio.sleep(0.05)  # what other tests left
    dead.clear()
    return dead


async def test_a_lower_rank_is_handed_requests_as_long_as_it_has_room(side: Side, deployment_id: UUID) -> None:
    theirs, ours = Taken(), Taken()
    guest, host = await side.bus(), await side.bus()
    await guest.consume_requests(deployment_id, theirs.append, slots=2, rank=1)
    await host.consume_requests(deployment_id, ours.append, slots=2)
    for _ in range(2):
        await host.submit(request_to(deployment_id), reply_to="c")
        await asyncio.sleep(0.05)
    assert (len(ours), len(theirs)) == (2, 0)
    await host.submit(request_to(deployment_id), reply_to="c")
    await until(lambda: theirs)
    await ours[0].ack()
    await host.submit(request_to(deployment_id), reply_to="c")
    await until(lambda: len(ours) == 3)
    assert len(theirs) == 1


async def test_a_guest_takes_what_a_dead_host_had(side: Side, deployment_id: UUID) -> None:
    theirs, ours = Taken(), Taken()
    guest, host = await side.bus(), await side.bus()
    await guest.consume_requests(deployment_id, theirs.append, slots=1, rank=1)
    await host.consume_requests(deployment_id, ours.append, slots=1)
    request = request_to(deployment_id)
    await guest.submit(request, reply_to="c")
    await until(lambda: ours)
    await host.close()
    await until(lambda: theirs)
    assert (theirs[0].request, theirs[0].attempt) == (request, 2)


async def test_a_paused_consumer_takes_none_until_it_is_resumed(side: Side, deployment_id: UUID) -> None:
    bus, taken = await side.bus(), Taken()
    consumer = await bus.consume_requests(deployment_id, taken.append, slots=1, paused=True)
    for _ in range(3):
        await bus.submit(request_to(deployment_id), reply_to="c")
    await asyncio.sleep(0.1)
    assert taken == []
    await consumer.resume()
    await until(lambda: taken)
    await consumer.pause()
    await taken[0].ack()
    await asyncio.sleep(0.1)
    assert len(taken) == 1
    await consumer.resume()
    await until(lambda: len(taken) == 2)
    await consumer.resume()  # one more, whatever is in hand
    await until(lambda: len(taken) == 3)
    await consumer.cancel()
    for delivery in taken:
        await delivery.ack()


async def test_requests_of_a_gpu_type_wait_in_its_own_queue(side: Side, deployment_id: UUID) -> None:
    bus, shared, typed = await side.bus(), Taken(), Taken()
    kind = "NVIDIA L4, 24 GB"
    with pytest.raises(Unroutable):
        await bus.submit(request_to(deployment_id), reply_to="c", gpu_type=kind)
    with pytest.raises(Unroutable):
        await bus.consume_requests(deployment_id, typed.append, slots=1, gpu_type=kind, paused=True)
    await bus.open_requests(deployment_id, [kind])
    await bus.consume_requests(deployment_id, shared.append, slots=4)
    for_it, for_any, left = (request_to(deployment_id) for _ in range(3))
    await bus.submit(for_it, reply_to="c", gpu_type=kind, priority=Priority.LOW)
    await bus.submit(for_any, reply_to="c")
    await until(lambda: shared)
    consumer = await bus.consume_requests(deployment_id, typed.append, slots=1, gpu_type=kind)
    await until(lambda: typed)
    assert (typed.requests, typed[0].priority, shared.requests) == ([for_it], Priority.LOW, [for_any])

    await consumer.cancel()
    dead: list[DeadRequest] = []
    await bus.submit(left, reply_to="c", gpu_type=kind)

    async def answer(one: DeadRequest) -> None:
        dead.append(one)

    await bus.close_requests(deployment_id, answer, [kind])
    assert [(one.request, one.reason) for one in dead] == [(left, "closed")]
    assert await side.waiting(request_queue(deployment_id, Priority.NORMAL, kind)) == []


async def test_a_gpu_types_queue_has_the_bounds_deadlines_and_dead_letters_of_the_shared_one(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "REQUEST_QUEUE_LENGTH", 3)
    bus, ours, kind = await side.bus(), uuid4(), "L4"
    await bus.open_requests(ours, [kind])
    dead = await _dead_requests(bus)
    late, deadly = request_to(ours), request_to(ours)
    await bus.submit(late, reply_to="c", gpu_type=kind, deadline_s=0.05)
    await until(lambda: dead)
    assert [(d.request, d.reason) for d in dead] == [(late, "expired")]

    given_back: list[asyncio.Future[None]] = []
    guest = await bus.consume_requests(
        ours, lambda delivery: given_back.append(asyncio.ensure_future(delivery.requeue())), slots=1,
        gpu_type=kind, rank=1,
    )  # fmt: skip
    await bus.submit(deadly, reply_to="c", gpu_type=kind)
    await until(lambda: len(dead) == 2)
    assert (dead[1].request, dead[1].reason, len(given_back)) == (deadly, "delivery_limit", MAX_ATTEMPTS)
    await guest.cancel()

    with pytest.raises(QueueFull):
        for _ in range(10):
            await bus.submit(request_to(ours), reply_to="c", gpu_type=kind)
    await bus.submit(request_to(ours), reply_to="c")  # the shared queue has its own bound

    async def answer(closed: DeadRequest) -> None:
        assert closed.reason == "closed"

    await bus.close_requests(ours, answer, [kind])
