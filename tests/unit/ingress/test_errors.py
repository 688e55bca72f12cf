"""Every error has a status, and a body in OpenAI's shape."""

from maveriq.contracts import ErrorCode, Fault, InferenceError
from maveriq_ingress.errors import of_inference, refused

STATUSES = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.CONTEXT_EXCEEDED: 400,
    ErrorCode.QUEUE_FULL: 429,
    ErrorCode.DEADLINE_EXCEEDED: 504,
    ErrorCode.DEPLOYMENT_GONE: 503,
    ErrorCode.INTERRUPTED: 503,
    ErrorCode.ENGINE_FAILED: 500,
}


def test_every_inference_error_has_its_status() -> None:
    assert set(STATUSES) == set(ErrorCode)
    for code, status in STATUSES.items():
        answer = of_inference(InferenceError(code=code, field="f", problem="p", remedy="r"))
        assert answer.status == status
        assert answer.body() == {
            "error": {"message": "p; r", "type": answer.type, "param": "f", "code": answer.code}
        }  # fmt: skip


def test_what_may_succeed_later_says_when_and_what_may_not_says_so() -> None:
    for code in ErrorCode:
        headers = of_inference(InferenceError(code=code, problem="p", remedy="r")).headers
        later = code in (ErrorCode.QUEUE_FULL, ErrorCode.DEPLOYMENT_GONE, ErrorCode.INTERRUPTED)
        assert ("Retry-After" in headers) is later


def test_all_faults_are_in_the_body_and_the_first_is_the_param() -> None:
    first, second = (Fault(field=name, problem="p", remedy="r") for name in ("a", "b"))
    error = refused(first, second).body()["error"]
    assert error == {
        "message": "a: p; r; b: p; r",
        "type": "invalid_request_error",
        "param": "a",
        "code": None,
        "faults": [first.model_dump(), second.model_dump()],
    }
