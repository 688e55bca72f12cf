"""Records one request as a span, from its taking to its end, in OpenTelemetry's words for generative AI."""

import time

from maveriq.trace_context import begun
from maveriq.tracing import NO_SPANS, Kind, Spans
from maveriq_worker.answering import Answer, Ending


def record(spans: Spans, model: str, answer: Answer, now: float) -> None:
    """It is no longer in hand.

    Args:
        now: the loop's, in s, as the answer's times are.
    """
    if spans is NO_SPANS:
        return
    operation = "text_completion" if answer.request.messages is None else "chat"
    parent = answer.trace or begun(answer.request.request_id)
    began_ns = time.time_ns() - round((now - answer.taken_at) * 1e9)
    attributes = _asked(operation, model, answer) | _answered(answer)
    span = spans.begin(f"{operation} {model}", Kind.CONSUMER, parent, attributes, began_ns=began_ns)
    error = None if answer.last is None else answer.last.error
    if error is not None:
        span.fail(error.code, error.problem)
    elif answer.last is None and answer.ending is not Ending.CLIENT_GONE:
        span.fail("given_back", "the worker stopped, its engine failed or its connection broke: another attempt comes")
    span.end()


def _asked(operation: str, model: str, answer: Answer) -> dict[str, str | int]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "maveriq",
        "gen_ai.request.model": model,
        "messaging.message.id": str(answer.request.request_id),
        "messaging.message.conversation_id": str(answer.request.deployment_id),
        "maveriq.attempt": answer.attempt,
        "maveriq.priority": answer.delivery.priority,
    }


def _answered(answer: Answer) -> dict[str, str | int | float | tuple[str, ...]]:
    """Times count from the request's taking, as in the worker's metrics."""
    last, told = answer.last, dict[str, str | int | float | tuple[str, ...]]()
    if answer.began_at is not None:
        told["maveriq.queue_s"] = answer.began_at - answer.taken_at
    if answer.first_at is not None:
        told["gen_ai.response.time_to_first_chunk"] = answer.first_at - answer.taken_at
    if last is not None and last.finish_reason is not None:
        told["gen_ai.response.finish_reasons"] = (last.finish_reason,)
    if answer.prompt_tokens is not None:
        told["gen_ai.usage.input_tokens"] = answer.prompt_tokens
        told["gen_ai.usage.output_tokens"] = answer.num_tokens
    return told
