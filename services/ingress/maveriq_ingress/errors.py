"""Errors as HTTP answers, in OpenAI's shape. Pure: faults and inference errors in, HttpError out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from maveriq.contracts import ErrorCode, Fault, InferenceError

RETRY_AFTER_S = 2  # what clients are told to wait; a replica takes seconds to start


class HttpError(Exception):
    """Ends a request with a status and an error body."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str,
        code: str | None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        faults: tuple[Fault, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.faults = faults

    def body(self) -> dict[str, object]:
        error: dict[str, object] = {
            "message": self.message, "type": self.type, "param": self.param, "code": self.code
        }  # fmt: skip
        if self.faults:
            error["faults"] = [fault.model_dump() for fault in self.faults]
        return {"error": error}


def refused(*faults: Fault, status: int = 400, code: str | None = None) -> HttpError:
    """A request that can never succeed as it is."""
    return HttpError(
        status=status,
        message="; ".join(str(fault) for fault in faults),
        type="invalid_request_error",
        code=code,
        param=faults[0].field or None,
        faults=faults,
    )


def model_not_found(name: str, remedy: str) -> HttpError:
    fault = Fault(field="model", problem=f"the model {name!r} is not served here", remedy=remedy)
    return refused(fault, status=404, code="model_not_found")


def unavailable(problem: str, remedy: str, code: str) -> HttpError:
    """It may well succeed later."""
    return HttpError(
        status=503,
        message=f"{problem}; {remedy}",
        type="service_unavailable_error",
        code=code,
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    type: str
    code: str | None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


_AGAIN = {"Retry-After": str(RETRY_AFTER_S)}
_NEVER_AGAIN = {"x-should-retry": "false"}  # the openai client would send any 5xx again
_ANSWERS = {
    ErrorCode.INVALID_REQUEST: _Answer(400, "invalid_request_error", None),
    ErrorCode.CONTEXT_EXCEEDED: _Answer(400, "invalid_request_error", "context_length_exceeded"),
    ErrorCode.QUEUE_FULL: _Answer(429, "rate_limit_error", "rate_limit_exceeded", _AGAIN),
    ErrorCode.DEADLINE_EXCEEDED: _Answer(504, "timeout_error", "deadline_exceeded", _NEVER_AGAIN),
    ErrorCode.DEPLOYMENT_GONE: _Answer(503, "service_unavailable_error", "deployment_gone", _AGAIN),
    ErrorCode.INTERRUPTED: _Answer(503, "service_unavailable_error", "interrupted", _AGAIN),
    ErrorCode.ENGINE_FAILED: _Answer(500, "server_error", "engine_failed", _NEVER_AGAIN),
}


def of_inference(error: InferenceError) -> HttpError:
    """A request's error chunk as an HTTP answer."""
    answer = _ANSWERS[error.code]
    return HttpError(
        status=answer.status,
        message=f"{error.problem}; {error.remedy}",
        type=answer.type,
        code=answer.code,
        param=error.field or None,
        headers=answer.headers,
    )
