"""Spans: a service's own, where they are asked for; and the trace that a producer's program is in."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from maveriq.bus import Handler, Rejected
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.client import client_on
from maveriq.contracts import Fault, Intent, IntentSubmitted, ReleaseAccepted, ReleaseRequested
from maveriq.otlp import OtlpSpans
from maveriq.settings import BadSetting
from maveriq.topology import Service
from maveriq.trace_context import Trace, begun
from maveriq.tracing import ENDPOINT, NO_SPANS, Kind, current, recording, within

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", state="congo=t61")
ECHO = Service("echo", consumes=(ReleaseRequested,), emits=(ReleaseAccepted,))
ENDED = Service("ended", consumes=(ReleaseAccepted,), emits=())


class Recorded(InMemorySpanExporter):
    async def spans(self, num: int) -> dict[str, ReadableSpan]:
        """By name, once there are so many."""
        async with asyncio.timeout(10):
            while len(found := self.get_finished_spans()) < num:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return {span.name: span for span in found}


def ids(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


@pytest.fixture
async def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
async def echoing(broker: InProcessBroker, recorded: Recorded) -> AsyncIterator[InProcessBus]:
    """Two services, one hearing what the other returns; the other refuses one deployment."""

    async def echo(message: ReleaseRequested) -> ReleaseAccepted:
        if message.deployment_id == UUID(int=0):
            raise Rejected(Fault(field="deployment_id", problem="nothing", remedy="try another"))
        return ReleaseAccepted(deployment_id=message.deployment_id)

    async def ended(message: ReleaseAccepted) -> None: ...

    def bus_of(name: str) -> InProcessBus:
        return InProcessBus(broker, spans=OtlpSpans(name, SimpleSpanProcessor(recorded)))

    listening = [asyncio.Event(), asyncio.Event()]
    running = [
        asyncio.create_task(bus_of("echo").run(ECHO, [Handler(ReleaseRequested, echo)], ready=listening[0].set)),
        asyncio.create_task(bus_of("ended").run(ENDED, [Handler(ReleaseAccepted, ended)], ready=listening[1].set)),
    ]
    await asyncio.gather(*(each.wait() for each in listening))
    yield InProcessBus(broker)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_each_handled_message_is_a_span_under_the_one_that_caused_it(
    echoing: InProcessBus, recorded: Recorded
) -> None:
    message, id = ReleaseRequested(deployment_id=uuid4()), uuid4()
    with within(TRACE):
        await echoing.publish(message, id=id)
    spans = await recorded.spans(2)
    first, second = spans["process release.requested.v1"], spans["process release.accepted.v1"]
    assert first.parent is not None and second.parent is not None
    assert (first.parent.span_id, first.parent.is_remote) == (int(TRACE.parent_id, 16), True)
    assert second.parent.span_id == int(ids(first)[1], 16)
    assert second.parent.trace_state.to_header() == TRACE.state
    assert ids(first)[0] == ids(second)[0] == TRACE.trace_id
    assert [each.resource.attributes["service.name"] for each in (first, second)] == ["maveriq-echo", "maveriq-ended"]
    assert (first.kind, first.status.is_ok) == (otel.SpanKind.CONSUMER, True)
    assert dict(first.attributes or {}) == {
        "messaging.system": "in-process",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "echo.release.requested.v1",
        "messaging.message.id": str(id),
        "messaging.message.conversation_id": str(message.deployment_id),
        "maveriq.attempt": 1,
    }


async def test_a_trace_that_begins_here_has_the_id_that_its_log_lines_have(
    echoing: InProcessBus, recorded: Recorded
) -> None:
    id = uuid4()
    await echoing.publish(ReleaseRequested(deployment_id=uuid4()), id=id)
    spans = await recorded.spans(2)
    first = spans["process release.requested.v1"]
    assert (ids(first)[0], first.parent) == (begun(id).trace_id, None)


async def test_what_a_handler_raises_is_its_spans_error(echoing: InProcessBus, recorded: Recorded) -> None:
    await echoing.publish(ReleaseRequested(deployment_id=UUID(int=0)))
    (span,) = (await recorded.spans(1)).values()
    assert ((span.attributes or {})["error.type"], span.status.is_ok) == ("Rejected", False)
    assert span.status.description is not None and "nothing" in span.status.description


async def test_open_telemetry_switched_off_passes_traces_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    spans = OtlpSpans("planner", SimpleSpanProcessor(InMemorySpanExporter()))
    assert spans.begin("work", Kind.CONSUMER, TRACE, {}).trace == TRACE
    new = begun(uuid4())
    assert spans.begin("work", Kind.CONSUMER, new, {}).trace == new


async def test_spans_are_recorded_only_where_a_collector_is_named() -> None:
    async with recording("planner", {}) as spans:
        assert spans is NO_SPANS
    assert NO_SPANS.begin("work", Kind.CONSUMER, TRACE, {}).trace is TRACE
    async with recording("planner", {ENDPOINT: "http://127.0.0.1:9"}) as spans:
        assert isinstance(spans, OtlpSpans)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({ENDPOINT: "localhost:4318"}, "give a collector's address for OTLP over HTTP"),
        ({ENDPOINT: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "PROTOCOL='grpc': give one of http/proto"),
    ],
)
async def test_a_collector_that_cannot_be_spoken_to_stops_the_start(env: dict[str, str], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        async with recording("planner", env):
            pass


async def test_a_missing_extra_stops_the_start_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "maveriq.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BadSetting, match=r"pip install 'maveriq\[tracing\]'"):
        async with recording("planner", {ENDPOINT: "http://c:4318"}):
            pass


async def test_an_intent_and_a_request_belong_to_the_trace_that_their_producer_names_or_is_in(
    broker: InProcessBroker,
) -> None:
    bus, seen = InProcessBus(broker), list[Trace | None]()
    deployment_id = uuid4()
    await bus.open_requests(deployment_id)
    await bus.consume_requests(deployment_id, lambda delivery: seen.append(current()), slots=8)
    heard = Service("door", consumes=(IntentSubmitted,), emits=())

    async def hear(message: IntentSubmitted) -> None:
        seen.append(current())

    listening = asyncio.Event()
    running = asyncio.create_task(bus.run(heard, [Handler(IntentSubmitted, hear)], ready=listening.set))
    await listening.wait()

    async def ask(traceparent: str | None) -> list[Trace | None]:
        seen.clear()
        async with client_on(InProcessBus(broker)) as client:
            for asked in (
                client.deploy(Intent(model="smol"), traceparent=traceparent),
                anext(client.generate(deployment_id, "Hello", traceparent=traceparent)),
            ):
                waiting, before = asyncio.ensure_future(asked), len(seen)
                async with asyncio.timeout(5):
                    while len(seen) == before:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
        return seen

    given = Trace(TRACE.trace_id, TRACE.parent_id)
    assert await ask(given.headers()["traceparent"]) == [given, given]
    assert all(trace is not None and trace.is_new for trace in await ask("nonsense"))

    state = otel.TraceState.from_header([TRACE.state])
    span = otel.SpanContext(int(TRACE.trace_id, 16), int(TRACE.parent_id, 16), False, otel.TraceFlags(1), state)
    with otel.use_span(otel.NonRecordingSpan(span)):
        assert await ask(None) == [TRACE, TRACE]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_nothing_of_open_telemetry_is_imported_unless_it_is_switched_on() -> None:
    code = (
        "import asyncio, sys, maveriq.running, maveriq.tracing as t\n"
        "async def main():\n"
        "    async with t.recording('planner', {}): assert t.current() is None\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"
