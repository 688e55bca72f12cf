"""One inference: its request, and the chunks that answer it."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field, model_validator

from maveriq.contracts.histogram import MAX_TOKENS
from maveriq.contracts.message import DoorMessage, DoorValue, Message, Value


class ChatMessage(DoorValue):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class Sampling(DoorValue):
    """How to choose tokens. temperature 0 is greedy."""

    max_tokens: int | None = Field(
        default=None, gt=0, le=MAX_TOKENS, description="None: as many as the context still holds."
    )
    temperature: float = Field(default=1.0, ge=0, le=10)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63, description="None: derived from the request id.")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), max_length=16)
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Alternatives reported a token; None: none at all."
    )
    ignore_eos: bool = Field(default=False, description="Go on to max_tokens: for measuring.")


class RequestSubmitted(DoorMessage):
    """One inference request, sent to a queue of its deployment. Chunks go to the AMQP reply_to."""

    topic: ClassVar[str] = "request.submitted.v1"

    deployment_id: UUID
    request_id: UUID
    prompt: str | tuple[int, ...] | None = Field(default=None, description="Text, or token ids.")
    messages: tuple[ChatMessage, ...] | None = Field(
        default=None, description="A chat, rendered with the model's template."
    )
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _prompt_or_messages(self) -> "RequestSubmitted":
        if bool(self.prompt) == bool(self.messages):
            raise ValueError("prompt: exactly one of it and messages is needed; send one, not empty")
        return self


class RequestCancelled(DoorMessage):
    """The requester no longer waits: its decode slot is freed at the next step."""

    topic: ClassVar[str] = "request.cancelled.v1"
    routed_by: ClassVar[str | None] = "deployment_id"

    deployment_id: UUID
    request_id: UUID


class FinishReason(StrEnum):
    STOP = "stop"
    """End of sequence, or a stop string."""
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class ErrorCode(StrEnum):
    INVALID_REQUEST = "invalid_request"
    CONTEXT_EXCEEDED = "context_exceeded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    QUEUE_FULL = "queue_full"
    DEPLOYMENT_GONE = "deployment_gone"
    """Released, failed or never there."""
    ENGINE_FAILED = "engine_failed"
    INTERRUPTED = "interrupted"
    """Chunks were lost with a connection."""


class InferenceError(Value):
    """Why a request has no (further) answer."""

    code: ErrorCode
    field: str = Field(default="", description="Field of the request at fault; '' where none is.")
    problem: str
    remedy: str


class TokenLogprob(Value):
    token: str
    token_id: int
    logprob: float


class PositionLogprobs(Value):
    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = Field(default=(), description="Most likely first.")


class Usage(Value):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class Timing(Value):
    """Where a request's time went, by the worker's clock."""

    queue_ms: float = Field(ge=0, description="Taken from the queue to the start of prefill.")
    prefill_ms: float = Field(ge=0, description="Start of prefill to the first token.")
    decode_ms: float = Field(ge=0, description="First token to the last.")


class Chunk(Value):
    """One streamed piece of one request. The last has a finish_reason."""

    request_id: UUID
    attempt: int = Field(gt=0, description="Grows when the request is started again; its tokens are then the same.")
    index: int = Field(ge=0, description="Output tokens of this attempt before this chunk.")
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = Field(default=None, description="On the last chunk.")
    timing: Timing | None = Field(default=None, description="On the last chunk.")
    error: InferenceError | None = None


class ChunksProduced(Message):
    """The tokens that one engine step produced for all of one client's requests."""

    topic: ClassVar[str] = "chunks.produced.v1"

    chunks: tuple[Chunk, ...] = Field(min_length=1)
