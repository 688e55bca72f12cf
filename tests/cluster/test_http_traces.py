"""An HTTP client's trace, or a new one, goes with what its call causes; calls that ask for something are spans."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.requests import RequestInHand
from maveriq.otlp import OtlpSpans
from maveriq.trace_context import Trace, received
from tests.door import HELLO, MODEL, Door, quiet_ingress, served
from tests.fakes import FakeWorker

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "congo=t61"}
CHAT = {"model": "smol", "messages": HELLO}


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus) -> AsyncIterator[Door]:
    async with quiet_ingress(redis_url, bus) as opened:
        yield opened


def carried(worker: FakeWorker) -> Trace | None:
    """By the latest request."""
    taken = worker.seen[-1]
    assert isinstance(taken, RequestInHand)
    return received(taken.delivery.envelope.headers)


async def test_a_clients_trace_goes_with_its_request_and_without_one_a_trace_begins(door: Door) -> None:
    async with served(door) as worker:
        await door.http.post("/v1/chat/completions", json=CHAT, headers=GIVEN)
        assert carried(worker) == Trace(TRACE_ID, PARENT_ID, state="congo=t61")
        found = list[Trace | None]()
        for headers in ({}, {"traceparent": "nonsense", "tracestate": "a=1"}):
            await door.http.post("/v1/chat/completions", json=CHAT, headers=headers)
            found.append(carried(worker))
        twice = [("traceparent", GIVEN["traceparent"])] * 2  # which is none
        await door.http.post("/v1/chat/completions", json=CHAT, headers=twice)
        found.append(carried(worker))
    assert all(trace is not None and trace.state == "" for trace in found)
    assert len({TRACE_ID, *(trace.trace_id for trace in found if trace is not None)}) == 4


async def test_an_intent_goes_on_with_its_clients_trace(door: Door, broker: InProcessBroker) -> None:
    await door.http.post("/v1/models", json=MODEL)
    await door.http.post("/v1/intents", json={"model": "smol"}, headers=GIVEN)
    (accepted,) = broker.dead_letters("profiler.intent.accepted.v1")
    assert GIVEN.items() <= accepted.headers.items()


async def test_calls_that_ask_for_something_are_spans_until_their_last_token(
    redis_url: str, broker: InProcessBroker
) -> None:
    recorded = InMemorySpanExporter()
    bus = InProcessBus(broker, spans=OtlpSpans("ingress", SimpleSpanProcessor(recorded)))

    async def answered() -> ReadableSpan:
        async with asyncio.timeout(5):
            while not (found := [one for one in recorded.get_finished_spans() if "chat" in one.name]):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        recorded.clear()
        return found[0]

    async with quiet_ingress(redis_url, bus) as door, served(door) as worker:
        await door.http.get("/v1/gpus")
        worker.hold.clear()
        streaming = asyncio.ensure_future(
            door.http.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=GIVEN)
        )
        await door.until(lambda: _taken(worker))
        names = [span.name for span in recorded.get_finished_spans()]
        assert {"POST /v1/models", "POST /v1/intents"} <= set(names)
        assert not [name for name in names if name.startswith("GET") or "chat" in name]
        worker.hold.set()
        await streaming
        span = await answered()
        assert span.context is not None and span.parent is not None
        assert (span.kind.name, span.status.is_ok) == ("SERVER", True)
        assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
        assert dict(span.attributes or {}) == {
            "http.request.method": "POST",
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
            "url.path": "/v1/chat/completions",
            "url.scheme": "http",
        }
        below = carried(worker)
        assert below is not None
        assert below.parent_id == f"{span.context.span_id:016x}"

        await door.http.post("/v1/chat/completions", json={"model": "smol"})
        refused = await answered()
        assert (refused.status.is_ok, (refused.attributes or {})["http.response.status_code"]) == (True, 400)


async def _taken(worker: FakeWorker) -> bool:
    return bool(worker.seen)
