"""Answers requests that no worker will answer: each gets an error chunk that says why."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from maveriq.bus import DeadRequest, MailboxGone
from maveriq.contracts import Chunk, ChunksProduced, ErrorCode, FinishReason, InferenceError, Message
from maveriq.topology import MAX_ATTEMPTS

_ERRORS = {
    "expired": InferenceError(
        code=ErrorCode.DEADLINE_EXCEEDED,
        field="deadline",
        problem="the deadline passed before the request's turn came",
        remedy="allow more time, send it with high priority, or deploy more replicas",
    ),
    "delivery_limit": InferenceError(
        code=ErrorCode.ENGINE_FAILED,
        problem=f"the engine died {MAX_ATTEMPTS} times over this request",
        remedy="do not send it again as it is; the worker's log has the cause",
    ),
    "closed": InferenceError(
        code=ErrorCode.DEPLOYMENT_GONE,
        field="deployment_id",
        problem="the deployment ended before it took the request",
        remedy="send it to another deployment of the model, or deploy it again",
    ),
}


class Replies(Protocol):
    """What of the bus an answer needs."""

    async def send(self, address: str, message: Message, *, confirm: bool) -> None: ...


def answering(bus: Replies) -> Callable[[DeadRequest], Awaitable[None]]:
    """The function that answers one dead request. It raises Unavailable, so that the bus hands it out again."""

    async def answer(dead: DeadRequest) -> None:
        if dead.reply_to is None:
            return
        chunk = Chunk(
            request_id=dead.request.request_id,
            attempt=dead.attempt,
            index=0,
            finish_reason=FinishReason.ERROR,
            error=_ERRORS[dead.reason],
        )
        try:
            await bus.send(dead.reply_to, ChunksProduced(chunks=(chunk,)), confirm=True)
        except MailboxGone:
            return  # nobody waits for it

    return answer
