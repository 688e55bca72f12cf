"""What every broker must do for a service: ack, retry, dead-letter, give back. Runs on both."""

import asyncio
import json
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from maveriq.bus import Handler, QueueFull, Rejected, Unroutable, serving
from maveriq.bus import queues as bounds
from maveriq.bus.envelope import Envelope, seal
from maveriq.bus.handling import retry_delay_s
from maveriq.contracts import Fault, Message, MessageRefused, ReleaseAccepted, ReleaseRequested
from maveriq.topology import MAX_ATTEMPTS, PLANNER, WORKER
from tests.broker.sides import Echo, Side, until

SOME_ID = str(UUID(int=7)).encode()  # the same for every process that collects the tests


def release() -> ReleaseRequested:
    return ReleaseRequested(deployment_id=uuid4())


async def test_what_a_handler_returns_is_published_and_its_cause_acked(side: Side, echo: Echo) -> None:
    running = await echo.start(await side.bus())
    replies = await side.tap("release.accepted.v1")
    message, id = release(), uuid4()
    await (await side.bus()).publish(message, id=id)
    await until(lambda: message in echo.taken)
    running.cancel()
    await asyncio.wait([running])

    (reply,) = await side.waiting(replies)
    assert json.loads(reply.body) == {"deployment_id": str(message.deployment_id)}
    assert (reply.topic, reply.correlation_id) == ("release.accepted.v1", str(message.deployment_id))
    assert reply.headers["cause"] == str(id)
    assert await side.waiting(echo.queue) == []


async def test_each_reply_about_a_deployment_is_one_line_of_the_log(side: Side, echo: Echo) -> None:
    message = release()
    with capture_logs() as logged:
        await echo.start(await side.bus())
        await (await side.bus()).publish(message)
        await until(lambda: any(line.get("deployment_id") == str(message.deployment_id) for line in logged))
    (line,) = [line for line in logged if line.get("deployment_id") == str(message.deployment_id)]
    assert (line["event"], line["caused"]) == ("message caused", "release.accepted.v1")
    assert line["took_ms"] >= 0


async def test_a_failing_handler_is_tried_again_with_growing_delay(side: Side, echo: Echo) -> None:
    asked: list[int] = []

    def delay(attempt: int) -> float:
        asked.append(attempt)
        return 0.0

    async def fail(message: ReleaseRequested) -> None:
        if len(echo.taken) < MAX_ATTEMPTS:
            raise ConnectionError("the store is away")

    await echo.start(await side.bus(delay))
    echo.behave = fail
    await (await side.bus()).publish(release())
    await until(lambda: len(echo.taken) == MAX_ATTEMPTS)

    assert asked == [1, 2, 3, 4]
    assert [retry_delay_s(attempt) for attempt in asked] == [2, 4, 8, 16]
    assert await side.waiting(echo.service.dead_queue) == []


async def test_what_failed_too_often_lies_in_the_dead_queue_with_the_reason(side: Side, echo: Echo) -> None:
    async def fail(message: ReleaseRequested) -> None:
        raise ConnectionError("the store is away")

    await echo.start(await side.bus())
    echo.behave = fail
    message = release()
    await (await side.bus()).publish(message, reply_to="somebody")
    await until(lambda: len(echo.taken) == MAX_ATTEMPTS)

    dead = await _dead(side, echo)
    assert json.loads(dead.body)["deployment_id"] == str(message.deployment_id)
    assert dead.headers["reason"] == "failed 5 times, at last with ConnectionError: the store is away"
    assert (dead.headers["dead_from"], dead.reply_to) == (echo.queue, "somebody")


async def test_a_rejected_message_is_answered_and_dead_lettered_at_once(side: Side, echo: Echo) -> None:
    async def reject(message: ReleaseRequested) -> None:
        raise Rejected(Fault(field="deployment_id", problem="no such deployment", remedy="deploy first"))

    await echo.start(await side.bus())
    echo.behave = reject
    heard: list[Message] = []
    producer = await side.bus()
    mailbox = await producer.mailbox(heard.append)
    message, id = release(), uuid4()
    await producer.publish(message, id=id, reply_to=mailbox.address)
    await until(lambda: heard)

    fault = Fault(field="deployment_id", problem="no such deployment", remedy="deploy first")
    assert heard == [
        MessageRefused(
            refused_id=str(id),
            refused_topic="release.requested.v1",
            deployment_id=message.deployment_id,
            faults=(fault,),
        )
    ]
    dead = await _dead(side, echo)
    assert dead.headers["reason"] == str(fault)
    assert len(echo.taken) == 1


@pytest.mark.parametrize(
    ("body", "topic", "field", "remedy"),
    [
        (b"{not json", None, "", "send one JSON object in UTF-8"),
        (b"[]", None, "", "send a JSON object"),
        (b"{}", None, "deployment_id", "add it"),
        (b'{"deployment_id": "%s", "deploiment": 1}' % SOME_ID, None, "deploiment", "remove it"),
        (b'{"deployment_id": "%s"}' % SOME_ID, "release.requested.v2", "type", "release.requested.v1"),
    ],
)
async def test_bad_input_is_answered_with_the_field_and_the_remedy(
    side: Side, echo: Echo, body: bytes, topic: str | None, field: str, remedy: str
) -> None:
    await echo.start(await side.bus())
    heard: list[Message] = []
    mailbox = await (await side.bus()).mailbox(heard.append)
    await side.post(Envelope(body, topic=topic, message_id="mine", reply_to=mailbox.address), echo.queue, exchange="")
    await until(lambda: heard)

    (refused,) = heard
    assert isinstance(refused, MessageRefused)
    assert (refused.refused_id, refused.faults[0].field) == ("mine", field)
    assert remedy in refused.faults[0].remedy or "did you mean" in refused.faults[0].remedy
    dead = await _dead(side, echo)
    assert (dead.body, dead.headers["reason"]) == (body, "; ".join(map(str, refused.faults)))
    assert echo.taken == []


async def test_a_sender_that_left_keeps_nobody_from_dead_lettering(side: Side, echo: Echo) -> None:
    await echo.start(await side.bus())
    await side.post(Envelope(b"{}", reply_to="client.long-gone"), echo.queue, exchange="")
    assert (await _dead(side, echo)).body == b"{}"


async def test_a_message_seen_again_repeats_the_ids_of_its_replies(side: Side, echo: Echo) -> None:
    await echo.start(await side.bus())
    replies = await side.tap("release.accepted.v1")
    message, id = release(), uuid4()
    producer = await side.bus()
    for _ in range(2):
        await producer.publish(message, id=id)
    await until(lambda: len(echo.taken) == 2)
    await echo.stop()

    first, second = await side.waiting(replies)
    assert first.message_id == second.message_id


async def test_a_message_needs_no_uuid_for_its_id(side: Side, echo: Echo) -> None:
    await echo.start(await side.bus())
    replies = await side.tap("release.accepted.v1")
    message = release()
    envelope = Envelope(message.model_dump_json().encode(), message_id="order-17")
    for _ in range(2):
        await side.post(envelope, echo.queue, exchange="")
    await until(lambda: echo.taken == [message, message])
    await echo.stop()

    first, second = await side.waiting(replies)
    assert first.message_id == second.message_id
    assert UUID(first.headers["cause"])


async def test_what_a_dead_consumer_had_in_hand_goes_to_the_next(side: Side, echo: Echo) -> None:
    dying = await side.bus()

    async def hang(message: ReleaseRequested) -> None:
        await asyncio.Event().wait()

    await echo.start(dying)
    echo.behave = hang
    message = release()
    await (await side.bus()).publish(message)
    await until(lambda: message in echo.taken)
    await dying.close()

    echo.behave = None
    echo.taken.clear()
    follower = asyncio.create_task(
        (await side.bus()).run(echo.service, [Handler(ReleaseRequested, echo.on_release_requested)])
    )
    await until(lambda: message in echo.taken)
    follower.cancel()


async def test_stopping_a_service_lets_its_handlers_end(side: Side, echo: Echo) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work(message: ReleaseRequested) -> None:
        begun.set()
        await asyncio.sleep(0.1)
        ended.set()

    running = await echo.start(await side.bus())
    echo.behave = work
    await (await side.bus()).publish(release())
    await begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert ended.is_set()
    assert await side.waiting(echo.queue) == []


async def test_stopping_a_service_gives_back_what_does_not_end(
    side: Side, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "STOPPING_S", 0.05)

    async def hang(message: ReleaseRequested) -> None:
        await asyncio.Event().wait()

    running = await echo.start(await side.bus())
    echo.behave = hang
    await (await side.bus()).publish(release())
    await until(lambda: echo.taken)
    running.cancel()
    await asyncio.wait([running])
    assert len(await side.waiting(echo.queue)) == 1


async def test_a_service_with_other_handlers_than_the_topology_refuses_to_start(side: Side, echo: Echo) -> None:
    bus = await side.bus()
    right = Handler(ReleaseRequested, echo.on_release_requested)
    for wrong in ([], [right, right]):
        with pytest.raises(TypeError, match=r"topology\.py"):
            await bus.run(echo.service, wrong)
    with pytest.raises(TypeError, match=r"missing \['fingerprint\.measured\.v1'\]"):
        await bus.run(PLANNER, [right])


async def test_a_handler_may_emit_only_what_the_topology_says(side: Side, echo: Echo) -> None:
    async def wrong(message: ReleaseRequested) -> ReleaseRequested:
        echo.taken.append(message)
        return message

    running = asyncio.create_task((await side.bus()).run(echo.service, [Handler(ReleaseRequested, wrong)]))
    producer = await side.bus()
    while not echo.taken:
        await asyncio.sleep(0.02)
        try:
            await side.post(seal(release(), uuid4()), echo.queue, exchange="")
        except Unroutable:
            continue
        await until(lambda: echo.taken)
    dead = await _dead(side, echo)
    assert "does not emit release.requested.v1" in dead.headers["reason"]
    running.cancel()
    assert producer.connected


async def test_a_full_queue_refuses_the_publisher(side: Side, echo: Echo) -> None:
    _, queue = bounds.service_queues(echo.service)
    await side.declare(replace(queue, max_length=3))
    with pytest.raises(QueueFull):
        for _ in range(10):  # RabbitMQ's bound is a little soft
            await side.post(seal(release(), uuid4()), echo.queue, exchange="")
    assert len(await side.waiting(echo.queue)) < 10


async def test_a_topic_that_nobody_takes_is_unroutable(side: Side) -> None:
    with pytest.raises(Unroutable):
        await side.post(seal(ReleaseAccepted(deployment_id=uuid4()), uuid4()), "nobody.listens.v1")


def test_a_worker_has_its_own_queues_of_what_is_routed_by_node() -> None:
    queues = bounds.service_queues(WORKER, "n1")
    assert [(queue.name, queue.bindings) for queue in queues] == [
        ("worker.dead", ()),
        ("worker.placement.reserved.v1.n1", ("placement.reserved.v1.n1",)),
        ("worker.deployment.draining.v1.n1", ("deployment.draining.v1.n1",)),
        ("worker.confirmation.requested.v1.n1", ("confirmation.requested.v1.n1",)),
    ]


async def _dead(side: Side, echo: Echo) -> Envelope:
    """What lies in the dead queue, as soon as it does."""
    async with asyncio.timeout(10):
        while not (dead := await side.waiting(echo.service.dead_queue)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    (found,) = dead
    return found
