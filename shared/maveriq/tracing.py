"""Which trace the running task belongs to, and the port that spans are recorded through, where they are asked for."""

import sys
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from maveriq.settings import BadSetting, one_of, read, url
from maveriq.trace_context import TRACEPARENT, Trace, received

# OpenTelemetry's own: its SDK reads these and the rest (headers, sampler, resource) itself
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_ENDPOINT = url(("http", "https"), "give a collector's address for OTLP over HTTP, e.g. http://localhost:4318")

Attributes = Mapping[str, str | int | float | Sequence[str]]

_CURRENT: ContextVar[Trace | None] = ContextVar("maveriq_trace", default=None)


class Kind(Enum):
    """What a span's work is to the one that caused it."""

    CONSUMER = auto()
    """It was taken from a queue."""
    SERVER = auto()
    """Its caller waits for it."""


class Span(Protocol):
    """One piece of work."""

    @property
    def trace(self) -> Trace:
        """For what it causes."""
        ...

    def rename(self, name: str) -> None: ...

    def tell(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str, detail: str) -> None:
        """It did not do what it was to do.

        Args:
            error_type: one of a few words.
        """
        ...

    def end(self) -> None: ...


class Spans(Protocol):
    """Where one service records what it does."""

    def begin(
        self, name: str, kind: Kind, parent: Trace, attributes: Attributes, *, began_ns: int | None = None
    ) -> Span:
        """Args:
        began_ns: since the epoch; None: now.
        """
        ...

    async def close(self) -> None:
        """Send what is left."""
        ...


@dataclass(frozen=True, slots=True)
class _Unrecorded:
    trace: Trace

    def rename(self, name: str) -> None: ...

    def tell(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str, detail: str) -> None: ...

    def end(self) -> None: ...


class _NoSpans:
    def begin(
        self, name: str, kind: Kind, parent: Trace, attributes: Attributes, *, began_ns: int | None = None
    ) -> Span:
        return _Unrecorded(parent)

    async def close(self) -> None: ...


NO_SPANS: Spans = _NoSpans()
"""Traces are passed on, and nothing is recorded."""


def current() -> Trace | None:
    """Where in a trace this task is, which what it publishes carries. In a producer's program: its OpenTelemetry's."""
    return _CURRENT.get() or _of_producers_span()


def chosen(traceparent: str | None) -> Trace | None:
    """The trace that a producer names, if it is well-formed, else the current one."""
    return received({TRACEPARENT: traceparent}) or current()


@contextmanager
def within(trace: Trace | None) -> Generator[None]:
    """The current trace while the block runs, and of the tasks that it starts."""
    before = _CURRENT.set(trace)
    try:
        yield
    finally:
        _CURRENT.reset(before)


@contextmanager
def recorded(spans: Spans, name: str, kind: Kind, parent: Trace, attributes: Attributes) -> Generator[Span]:
    """A span while the block runs; what the block causes belongs under it. What it raises is the span's error."""
    span = spans.begin(name, kind, parent, attributes)
    try:
        with within(span.trace):
            yield span
    except BaseException as error:
        span.fail(type(error).__name__, str(error))
        raise
    finally:
        span.end()


@asynccontextmanager
async def recording(service: str, env: Mapping[str, str]) -> AsyncGenerator[Spans]:
    """Where a service records while the block runs: nowhere, unless OTEL_EXPORTER_OTLP_ENDPOINT names a collector.

    Raises:
        BadSetting: also where the extra that this needs is not installed.
    """
    if not read(env, ENDPOINT, _ENDPOINT, ""):
        yield NO_SPANS
        return
    read(env, PROTOCOL, one_of(("http/protobuf",)), "http/protobuf")
    try:
        from maveriq.otlp import OtlpSpans
    except ImportError as missing:
        remedy = "pip install 'maveriq[tracing]', or unset it"
        raise BadSetting(f"{ENDPOINT} is set, but {missing.name} is not installed: {remedy}") from missing
    spans = OtlpSpans(service)
    try:
        yield spans
    finally:
        await spans.close()


def _of_producers_span() -> Trace | None:
    api = sys.modules.get("opentelemetry.trace")  # where nobody has imported it there is no span
    if api is None:
        return None
    span = api.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return Trace(f"{span.trace_id:032x}", f"{span.span_id:016x}", int(span.trace_flags), span.trace_state.to_header())
