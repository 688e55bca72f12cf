"""A producer's client: each token once and in order, whatever happened on the way; refusals and failures by name."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from maveriq import Client, DeploymentFailedError, Intent, Model, Refused, RequestFailed, Sampling
from maveriq import inbox as inbox_module
from maveriq.bus import Bus, Handler, Rejected, RequestDelivery
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.client import client_on
from maveriq.contracts import (
    Chunk,
    ChunksProduced,
    Deployment,
    DeploymentChanged,
    ErrorCode,
    Failure,
    FailureReason,
    Fault,
    FinishReason,
    InferenceError,
    IntentSubmitted,
    Message,
    ModelRegistered,
    ModelSubmitted,
    Priority,
    ReleaseRequested,
    RequestCancelled,
    State,
)
from maveriq.ordering import Ordering
from maveriq.routing import serving
from maveriq.topology import Service, request_queue
from tests.fakes import PLAN
from tests.fleets import FLEET, LARGE, ROUTES, SMALL

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = ("once", " upon", " a", " time")


def piece(request_id: UUID, index: int, *, attempt: int = 1, tokens: int = 1, final: bool = False) -> Chunk:
    """Tokens index..index + tokens of the answer WORDS."""
    return Chunk(
        request_id=request_id,
        attempt=attempt,
        index=index,
        text="".join(WORDS[index : index + tokens]),
        token_ids=tuple(range(index, index + tokens)),
        finish_reason=FinishReason.STOP if final else None,
    )


def ordered(*chunks: Chunk) -> tuple[str, list[int]]:
    """Text and tokens that a client sees of chunks arriving so."""
    ordering = Ordering()
    out = [new for chunk in chunks for new in ordering.take(chunk)]
    return "".join(chunk.text for chunk in out), [token for chunk in out for token in chunk.token_ids]


ONE = uuid4()


def test_chunks_that_come_early_wait_for_the_gap_to_be_filled() -> None:
    assert ordered(piece(ONE, 0), piece(ONE, 2), piece(ONE, 3), piece(ONE, 1)) == ("once upon a time", [0, 1, 2, 3])


def test_a_second_attempt_repeats_nothing() -> None:
    first = [piece(ONE, n) for n in range(2)]
    again = [piece(ONE, n, attempt=2) for n in range(4)]
    assert ordered(*first, *again) == ("once upon a time", [0, 1, 2, 3])


def test_a_second_attempt_that_steps_differently_is_cut_to_what_is_new() -> None:
    assert ordered(piece(ONE, 0), piece(ONE, 0, attempt=2, tokens=4)) == ("once upon a time", [0, 1, 2, 3])


def test_a_worker_that_was_given_up_is_not_heard() -> None:
    assert ordered(piece(ONE, 0, attempt=2), piece(ONE, 1), piece(ONE, 1, attempt=2)) == ("once upon", [0, 1])


def test_a_last_chunk_without_new_tokens_still_ends_the_answer() -> None:
    ordering = Ordering()
    ordering.take(piece(ONE, 0))
    (last,) = ordering.take(piece(ONE, 0, attempt=2, final=True))
    assert (last.text, last.token_ids, last.finish_reason) == ("", (), FinishReason.STOP)


class Worker:
    """Takes a deployment's requests and answers each as told."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.arrived: asyncio.Queue[RequestDelivery] = asyncio.Queue()

    async def send(self, delivery: RequestDelivery, *chunks: Chunk) -> None:
        assert delivery.reply_to is not None
        await self.bus.send(delivery.reply_to, ChunksProduced(chunks=chunks), confirm=True)


@pytest.fixture
async def broker() -> InProcessBroker:
    return InProcessBroker()


@pytest.fixture
async def bus(broker: InProcessBroker) -> AsyncIterator[Bus]:
    bus = InProcessBus(broker)
    yield bus
    await bus.close()


@pytest.fixture
async def client(bus: Bus) -> AsyncIterator[Client]:
    async with client_on(bus) as client:
        yield client


@pytest.fixture
async def deployment_id() -> UUID:
    return uuid4()


@pytest.fixture
async def worker(broker: InProcessBroker, deployment_id: UUID) -> AsyncIterator[Worker]:
    bus = InProcessBus(broker)
    worker = Worker(bus)
    await bus.open_requests(deployment_id)
    await bus.consume_requests(deployment_id, worker.arrived.put_nowait, slots=8)
    yield worker
    await bus.close()


async def answer_with(worker: Worker, *steps: tuple[int, ...]) -> None:
    """Answer one request, a message for each step."""
    delivery = await worker.arrived.get()
    for step in steps:
        chunks = (piece(delivery.request.request_id, index, final=index == len(WORDS) - 1) for index in step)
        await worker.send(delivery, *chunks)
    await delivery.ack()


async def test_generate_streams_text_and_ends_with_the_finish_reason(
    client: Client, worker: Worker, deployment_id: UUID
) -> None:
    answering = asyncio.create_task(answer_with(worker, (0,), (1, 2), (3,)))
    chunks = [chunk async for chunk in client.generate(deployment_id, "tell", sampling=Sampling(temperature=0))]
    await answering
    assert "".join(chunk.text for chunk in chunks) == "once upon a time"
    assert chunks[-1].finish_reason is FinishReason.STOP


async def test_a_request_goes_to_the_type_that_the_latest_routes_name(
    client: Client, broker: InProcessBroker, deployment_id: UUID
) -> None:
    worker = Worker(InProcessBus(broker))
    await worker.bus.open_requests(deployment_id, [SMALL, LARGE])
    for gpu_type in (SMALL, LARGE):
        await worker.bus.consume_requests(deployment_id, worker.arrived.put_nowait, slots=8, gpu_type=gpu_type)
    plan = PLAN.model_copy(update={"fleet": FLEET})
    both = Deployment(
        deployment_id=deployment_id, state=State.READY, intent=Intent(model="m"), accepted_at=NOW, changed_at=NOW,
        plan=plan, routes=ROUTES,
    )  # fmt: skip

    async def goes_to(deployment: Deployment | UUID) -> str:
        asking = asyncio.ensure_future(anext(client.generate(deployment, "hello")))
        delivery = await worker.arrived.get()
        asking.cancel()
        await delivery.ack()
        return delivery.delivery.queue  # type: ignore[attr-defined, no-any-return]

    assert await goes_to(both) == request_queue(deployment_id, Priority.NORMAL, SMALL)
    await asyncio.sleep(0.01)
    later = both.model_copy(
        update={"routes": serving(ROUTES, frozenset({LARGE})), "changed_at": NOW + timedelta(seconds=1)}
    )
    await worker.bus.publish(DeploymentChanged(deployment_id=deployment_id, deployment=later))
    await asyncio.sleep(0.01)
    for given in (both, deployment_id):
        assert await goes_to(given) == request_queue(deployment_id, Priority.NORMAL, LARGE)


async def test_many_requests_of_one_client_are_told_apart(client: Client, worker: Worker, deployment_id: UUID) -> None:
    async def collect() -> str:
        return "".join([chunk.text async for chunk in client.generate(deployment_id, "tell")])

    answering = [asyncio.create_task(answer_with(worker, (0, 1), (2,), (3,))) for _ in range(8)]
    assert await asyncio.gather(*(collect() for _ in range(8))) == ["once upon a time"] * 8
    await asyncio.gather(*answering)


async def test_chunks_lost_with_a_connection_end_the_request_as_interrupted(
    client: Client, worker: Worker, deployment_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "GAP_S", 0.01)
    answering = asyncio.create_task(answer_with(worker, (0,), (2,), (3,)))
    with pytest.raises(RequestFailed) as failed:
        async for _ in client.generate(deployment_id, "tell"):
            pass
    await answering
    assert failed.value.error.code is ErrorCode.INTERRUPTED


async def test_an_error_chunk_is_raised_with_its_words(client: Client, worker: Worker, deployment_id: UUID) -> None:
    async def refuse() -> None:
        delivery = await worker.arrived.get()
        error = InferenceError(
            code=ErrorCode.CONTEXT_EXCEEDED, field="prompt", problem="9 tokens do not fit 8", remedy="shorten it"
        )
        request_id = delivery.request.request_id
        await worker.send(
            delivery,
            Chunk(request_id=request_id, attempt=1, index=0, finish_reason=FinishReason.ERROR, error=error),
        )

    answering = asyncio.create_task(refuse())
    with pytest.raises(RequestFailed, match="prompt: 9 tokens do not fit 8; shorten it"):
        await anext(client.generate(deployment_id, "tell"))
    await answering


async def test_a_request_for_no_deployment_says_that_it_is_gone(client: Client) -> None:
    with pytest.raises(RequestFailed) as failed:
        await anext(client.generate(uuid4(), "tell"))
    assert failed.value.error.code is ErrorCode.DEPLOYMENT_GONE


async def test_a_full_queue_says_so(client: Client, bus: Bus, deployment_id: UUID) -> None:
    await bus.open_requests(deployment_id)
    waiting = [client.generate(deployment_id, "tell") for _ in range(1001)]
    first_steps = [asyncio.ensure_future(anext(each)) for each in waiting]
    done, _ = await asyncio.wait(first_steps, return_when=asyncio.FIRST_COMPLETED)
    failed = next(iter(done)).exception()
    assert isinstance(failed, RequestFailed)
    assert failed.error.code is ErrorCode.QUEUE_FULL
    for step in first_steps:
        step.cancel()
    await asyncio.gather(*first_steps, return_exceptions=True)


async def test_no_answer_by_the_deadline_ends_the_request(
    client: Client, worker: Worker, deployment_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maveriq.streams.DEADLINE_GRACE_S", 0.0)
    with pytest.raises(RequestFailed) as failed:
        await anext(client.generate(deployment_id, "tell", deadline_s=0.02))
    assert failed.value.error.code is ErrorCode.DEADLINE_EXCEEDED


async def test_leaving_early_cancels_the_request(client: Client, bus: Bus, worker: Worker, deployment_id: UUID) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    listener = await bus.mailbox(heard.put_nowait)
    await listener.bind(f"{RequestCancelled.topic}.{deployment_id}")
    answering = asyncio.create_task(answer_with(worker, (0,)))
    answer = client.generate(deployment_id, "tell")
    await anext(answer)
    await answer.aclose()
    await answering
    cancelled = await heard.get()
    assert isinstance(cancelled, RequestCancelled)


async def test_closing_the_client_ends_what_still_waits(bus: Bus, worker: Worker, deployment_id: UUID) -> None:
    async with client_on(bus) as client:
        waiting = asyncio.ensure_future(anext(client.generate(deployment_id, "tell")))
        await worker.arrived.get()
    with pytest.raises(RequestFailed) as failed:
        await waiting
    assert failed.value.error.code is ErrorCode.INTERRUPTED


FAKE_INGRESS = Service(
    "ingress",
    consumes=(ModelSubmitted, IntentSubmitted, ReleaseRequested),
    emits=(ModelRegistered, DeploymentChanged),
)


class Ingress:
    """Answers as ingress does, with the states it is told to give."""

    def __init__(self) -> None:
        self.states: tuple[State, ...] = (State.ACCEPTED, State.PLANNED, State.READY)
        self.intent = Intent(model="tiny")

    async def on_model(self, message: ModelSubmitted) -> Message:
        return ModelRegistered(model=message.model)

    async def on_intent(self, message: IntentSubmitted) -> list[Message]:
        if message.intent.model != "tiny":
            raise Rejected(Fault(field="intent.model", problem="is not known", remedy="name one of: tiny"))
        return [self._changed(message.deployment_id, state) for state in self.states]

    async def on_release(self, message: ReleaseRequested) -> list[Message]:
        return [self._changed(message.deployment_id, state) for state in (State.DRAINING, State.RELEASED)]

    def _changed(self, deployment_id: UUID, state: State) -> Message:
        failure = Failure(reason=FailureReason.NO_CAPACITY, detail="no fragment is large enough")
        deployment = Deployment(
            deployment_id=deployment_id,
            state=state,
            intent=self.intent,
            accepted_at=NOW,
            changed_at=NOW,
            failure=failure if state is State.FAILED else None,
        )
        return DeploymentChanged(deployment_id=deployment_id, deployment=deployment)


@pytest.fixture
async def ingress(broker: InProcessBroker) -> AsyncIterator[Ingress]:
    ingress = Ingress()
    bus = InProcessBus(broker)
    handlers = [
        Handler(ModelSubmitted, ingress.on_model),
        Handler(IntentSubmitted, ingress.on_intent),
        Handler(ReleaseRequested, ingress.on_release),
    ]
    serving = asyncio.create_task(bus.run(FAKE_INGRESS, handlers))
    while "ingress.intent.submitted.v1" not in broker.queues:  # noqa: ASYNC110  # nothing is signalled
        await asyncio.sleep(0)
    yield ingress
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await bus.close()


async def test_deploy_returns_once_ready_and_tells_each_state(client: Client, ingress: Ingress) -> None:
    seen: list[State] = []
    deployment = await client.deploy(Intent(model="tiny"), on_change=lambda change: seen.append(change.state))
    assert deployment.state is State.READY
    assert seen == [State.ACCEPTED, State.PLANNED, State.READY]


async def test_a_dry_run_ends_with_its_plan(client: Client, ingress: Ingress) -> None:
    assert (await client.deploy(Intent(model="tiny"), dry_run=True)).state is State.PLANNED


async def test_a_refused_intent_names_the_field_and_the_remedy(client: Client, ingress: Ingress) -> None:
    with pytest.raises(Refused) as refused:
        await client.deploy(Intent(model="tinny"))
    assert str(refused.value) == "intent.model: is not known; name one of: tiny"


async def test_a_failed_deployment_says_why(client: Client, ingress: Ingress) -> None:
    ingress.states = (State.ACCEPTED, State.FAILED)
    with pytest.raises(DeploymentFailedError) as failed:
        await client.deploy(Intent(model="tiny"))
    assert failed.value.failure.reason is FailureReason.NO_CAPACITY


async def test_register_and_release_return_when_they_are_done(client: Client, ingress: Ingress) -> None:
    await client.register(Model(name="tiny", source="somewhere"))
    assert (await client.release(uuid4())).state is State.RELEASED
