"""One request in hand: its place, its clock and the chunks that end it."""

import asyncio
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from enum import Enum, auto
from json.encoder import encode_basestring

from maveriq.bus import RequestDelivery
from maveriq.contracts import (
    Chunk,
    ErrorCode,
    FinishReason,
    InferenceError,
    RequestSubmitted,
    Timing,
    Usage,
)
from maveriq.trace_context import Trace
from maveriq.tracing import current
from maveriq_worker.engine import Generation, Produced
from maveriq_worker.outbox import Lane


class Ending(Enum):
    """Why a request ends before its engine is done with it."""

    CANCELLED = auto()
    LATE = auto()
    CLIENT_GONE = auto()
    GIVEN_BACK = auto()
    """To the queue: somebody else answers it."""


@dataclass(slots=True, eq=False)
class Answer:
    """What is known of one request while it is being answered. Times are the loop's, in s."""

    delivery: RequestDelivery
    lane: Lane
    taken_at: float
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    ending: Ending | None = None
    generating: bool = False
    began_at: float | None = None
    first_at: float | None = None
    prompt_tokens: int | None = None
    num_tokens: int = 0
    """Output tokens sent so far: the index of the next chunk."""
    last: Chunk | None = None
    """None: it has none yet."""
    context: Context = field(default_factory=copy_context)
    """Of its arrival: its own ids for the log, whichever request's end lets it begin."""
    trace: Trace | None = field(default_factory=current)
    request: RequestSubmitted = field(init=False)
    attempt: int = field(init=False)
    _start: str = field(init=False)

    def __post_init__(self) -> None:
        self.request = self.delivery.request
        self.attempt = self.delivery.attempt
        self._start = f'{{"request_id":"{self.request.request_id}","attempt":{self.attempt},"index":'

    def piece(self, produced: Produced) -> str:
        """A chunk after which more come, as JSON. The hot path: by way of the class it costs three times as much."""
        index = self.num_tokens
        token_ids = produced.token_ids
        self.num_tokens = index + len(token_ids)
        if produced.logprobs is not None:
            return self._chunk(index, produced).model_dump_json(exclude_none=True)
        ids = token_ids[0] if len(token_ids) == 1 else ",".join(map(str, token_ids))
        return f'{self._start}{index},"text":{encode_basestring(produced.text)},"token_ids":[{ids}]}}'

    def _chunk(self, index: int, produced: Produced) -> Chunk:
        return Chunk(
            request_id=self.request.request_id,
            attempt=self.attempt,
            index=index,
            text=produced.text,
            token_ids=produced.token_ids,
            logprobs=produced.logprobs,
        )

    def end(
        self,
        now: float,
        reason: FinishReason,
        produced: Produced | None = None,
        error: InferenceError | None = None,
    ) -> Chunk:
        """The last chunk, with what the engine's last step brought."""
        token_ids = produced.token_ids if produced else ()
        index = self.num_tokens
        self.num_tokens = index + len(token_ids)
        self.last = Chunk(
            request_id=self.request.request_id,
            attempt=self.attempt,
            index=index,
            text=produced.text if produced else "",
            token_ids=token_ids,
            logprobs=produced.logprobs if produced else None,
            finish_reason=reason,
            usage=self._usage(),
            timing=self._timing(now),
            error=error,
        )
        return self.last

    def _usage(self) -> Usage | None:
        """None: the engine never said how long the prompt is."""
        if self.prompt_tokens is None:
            return None
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.num_tokens)

    def _timing(self, now: float) -> Timing | None:
        """None: no token was produced."""
        if self.began_at is None or self.first_at is None:
            return None
        return Timing(
            queue_ms=(self.began_at - self.taken_at) * 1000,
            prefill_ms=(self.first_at - self.began_at) * 1000,
            decode_ms=(now - self.first_at) * 1000,
        )


def generation(request: RequestSubmitted) -> Generation:
    """A request as the engine sees it."""
    return Generation(request.request_id, request.prompt, request.messages, request.sampling)


LATE = InferenceError(
    code=ErrorCode.DEADLINE_EXCEEDED,
    field="deadline",
    problem="the deadline passed before the answer was complete",
    remedy="give a longer deadline, ask for fewer tokens, or deploy more replicas",
)
ENGINE_ERROR = InferenceError(
    code=ErrorCode.ENGINE_FAILED,
    problem="the engine gave up on this request",
    remedy="send it again; if it fails again, see the worker's log",
)
