"""Puts each HTTP request into its trace, its client's or a new one; records those that ask for something to be done."""

from uuid import uuid4

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.routing import Route as Endpoint
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from maveriq.trace_context import TRACEPARENT, TRACESTATE, Trace, begun, received
from maveriq.tracing import NO_SPANS, Attributes, Kind, Span, Spans, recorded, within

RECORDED_METHODS = ("POST", "DELETE")  # the others look, over and over


class TracedHttp:
    """The application, each request within its trace."""

    def __init__(self, app: Starlette, spans: Spans) -> None:
        self._app: ASGIApp = app
        self._spans = spans
        self._paths: dict[object, str] = {each.endpoint: each.path for each in app.routes if isinstance(each, Endpoint)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = _trace(Headers(scope=scope))
        with within(trace), bound_contextvars(trace_id=trace.trace_id):
            if self._spans is NO_SPANS or scope["method"] not in RECORDED_METHODS:
                await self._app(scope, receive, send)
                return
            with recorded(self._spans, scope["method"], Kind.SERVER, trace, _asked(scope)) as span:

                async def sending(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        self._tell(span, scope, message["status"])
                    await send(message)

                await self._app(scope, receive, sending)

    def _tell(self, span: Span, scope: Scope, status: int) -> None:
        """What is known once the answer begins."""
        path = self._paths.get(scope.get("endpoint"))
        if path is not None:
            span.rename(f"{scope['method']} {path}")
            span.tell({"http.route": path})
        span.tell({"http.response.status_code": status})
        if status >= 500:
            span.fail(str(status), "")


def _trace(headers: Headers) -> Trace:
    parents = headers.getlist(TRACEPARENT)
    given = {TRACESTATE: ",".join(headers.getlist(TRACESTATE))}
    if len(parents) == 1:  # several are as none
        given[TRACEPARENT] = parents[0]
    return received(given) or begun(uuid4())


def _asked(scope: Scope) -> Attributes:
    """In the words of OpenTelemetry's semantic conventions for HTTP."""
    return {"http.request.method": scope["method"], "url.path": scope["path"], "url.scheme": scope["scheme"]}
