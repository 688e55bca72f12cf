"""What a worker records of each request, however it ends."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from maveriq.bus.inprocess import InProcessBroker
from maveriq.contracts import RequestCancelled
from maveriq.otlp import OtlpSpans
from maveriq.trace_context import Trace, begun
from maveriq.tracing import within
from tests.unit.worker.engine_double import PROMPT_TOKENS, until
from tests.unit.worker.test_serving import Scene, serving_scene

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


class Recorded(InMemorySpanExporter):
    def of(self, request_id: UUID) -> list[ReadableSpan]:
        return [span for span in self.get_finished_spans() if told(span)["messaging.message.id"] == str(request_id)]

    async def the(self, request_id: UUID) -> ReadableSpan:
        await until(lambda: self.of(request_id))
        (span,) = self.of(request_id)
        return span


@pytest.fixture
async def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
async def scene(broker: InProcessBroker, recorded: Recorded) -> AsyncIterator[Scene]:
    async with serving_scene(broker, slots=2) as made:
        made.worker.spans = OtlpSpans("worker", SimpleSpanProcessor(recorded))
        yield made


async def test_an_answer_is_a_span_of_its_requests_trace_with_tokens_and_times(
    scene: Scene, recorded: Recorded
) -> None:
    with within(TRACE):
        asked = await scene.submit(tokens=3)
    await scene.steps_until(lambda: bool(recorded.of(asked.request_id)))
    span = await recorded.the(asked.request_id)
    assert span.resource.attributes["service.name"] == "maveriq-worker"
    assert (span.name, span.kind.name, span.status.is_ok) == ("text_completion smol", "CONSUMER", True)
    assert span.context is not None and span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE.trace_id, TRACE.parent_id)
    said = told(span)
    waited_s, first_s = said.pop("maveriq.queue_s"), said.pop("gen_ai.response.time_to_first_chunk")
    assert span.start_time is not None and span.end_time is not None
    assert 0 <= waited_s <= first_s <= (span.end_time - span.start_time) / 1e9 + 0.01
    assert said == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "maveriq",
        "gen_ai.request.model": "smol",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": PROMPT_TOKENS,
        "gen_ai.usage.output_tokens": 3,
        "messaging.message.id": str(asked.request_id),
        "messaging.message.conversation_id": str(scene.deployment_id),
        "maveriq.attempt": 1,
        "maveriq.priority": "normal",
    }


async def test_a_request_without_a_trace_begins_one_and_a_refused_one_says_why(
    scene: Scene, recorded: Recorded
) -> None:
    asked = await scene.submit(prompt="refuse")
    span = await recorded.the(asked.request_id)
    assert span.context is not None
    assert (f"{span.context.trace_id:032x}", span.parent) == (begun(asked.request_id).trace_id, None)
    assert told(span)["error.type"] == "context_exceeded"
    assert span.status.description == "too long"


async def test_a_cancelled_request_is_no_error(scene: Scene, recorded: Recorded) -> None:
    asked = await scene.submit(tokens=99)
    await until(lambda: scene.engine.asked)
    await scene.producer.publish(RequestCancelled(deployment_id=scene.deployment_id, request_id=asked.request_id))
    span = await recorded.the(asked.request_id)
    assert told(span)["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert span.status.is_ok


async def test_each_attempt_is_a_span_and_one_that_was_given_back_says_so(scene: Scene, recorded: Recorded) -> None:
    asked = await scene.submit(tokens=99)
    await until(lambda: scene.engine.asked)
    await scene.serving.give_back()
    span = await recorded.the(asked.request_id)
    assert told(span)["error.type"] == "given_back"


async def test_a_log_line_about_a_request_has_its_own_trace_whichever_request_let_it_begin(
    scene: Scene, recorded: Recorded
) -> None:
    first, second = await scene.submit(tokens=1), await scene.submit(tokens=99)
    await scene.settled([first, second], num_waiting=0)
    with capture_logs(processors=[merge_contextvars]) as logged:
        with within(TRACE):
            await scene.submit(prompt="bug")
        await scene.steps_until(lambda: bool(logged))
        await scene.serving.give_back()
    assert {(line["event"], line["trace_id"]) for line in logged} == {("answering failed", TRACE.trace_id)}
