"""Records spans with OpenTelemetry and sends them over OTLP: the only module that imports it, where it is asked for."""

import asyncio
import logging
from dataclasses import dataclass
from importlib.metadata import version
from threading import Thread

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from maveriq.trace_context import Trace
from maveriq.tracing import Attributes, Kind, Span

# each retry is a warning of its own; the batch that is given up, an error, is enough
logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)

FLUSH_S = 3.0  # that a collector is given to take what is left; one that answers takes milliseconds
_KINDS = {Kind.CONSUMER: otel.SpanKind.CONSUMER, Kind.SERVER: otel.SpanKind.SERVER}


class OtlpSpans:
    """Keeps `Spans`. Each service has its own, also where they share a process: the resource differs."""

    def __init__(self, service: str, processor: SpanProcessor | None = None) -> None:
        """Args:
        processor: None: to the collector that OpenTelemetry's variables name, in batches, from a thread.
        """
        self._ids = _Ids()
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: f"maveriq-{service}"}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("maveriq", version("maveriq"))

    def begin(
        self, name: str, kind: Kind, parent: Trace, attributes: Attributes, *, began_ns: int | None = None
    ) -> Span:
        if parent.is_new:
            self._ids.next_trace_id = int(parent.trace_id, 16)
        span = self._tracer.start_span(
            name, context=_above(parent), kind=_KINDS[kind], attributes=attributes, start_time=began_ns
        )
        return _Recorded(span, _place(span, parent))

    async def close(self) -> None:
        """Send what is left, for FLUSH_S at most: a collector that is away holds up no stop."""
        flushing = Thread(target=self._provider.shutdown, name="spans-flush", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_S)


class _Ids(RandomIdGenerator):
    """A trace that begins here has the id that its log lines have. Spans begin on the event loop's thread alone."""

    next_trace_id: int | None = None

    def generate_trace_id(self) -> int:
        wanted, self.next_trace_id = self.next_trace_id, None
        return super().generate_trace_id() if wanted is None else wanted


@dataclass(frozen=True, slots=True)
class _Recorded:
    span: otel.Span
    trace: Trace

    def rename(self, name: str) -> None:
        self.span.update_name(name)

    def tell(self, attributes: Attributes) -> None:
        self.span.set_attributes(attributes)

    def fail(self, error_type: str, detail: str) -> None:
        self.span.set_attribute("error.type", error_type)
        self.span.set_status(otel.Status(otel.StatusCode.ERROR, detail))

    def end(self) -> None:
        self.span.end()


def _above(parent: Trace) -> Context:
    if parent.is_new:
        return Context()  # a root, whatever is current
    remote = otel.SpanContext(
        int(parent.trace_id, 16),
        int(parent.parent_id, 16),
        is_remote=True,
        trace_flags=otel.TraceFlags(parent.flags),
        trace_state=otel.TraceState.from_header([parent.state]),
    )
    return otel.set_span_in_context(otel.NonRecordingSpan(remote), Context())


def _place(span: otel.Span, parent: Trace) -> Trace:
    """Where the span is in its trace; where its parent is, if OpenTelemetry is switched off (OTEL_SDK_DISABLED)."""
    found = span.get_span_context()
    if not found.is_valid:
        return parent
    state = found.trace_state.to_header()
    return Trace(f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags), state)
