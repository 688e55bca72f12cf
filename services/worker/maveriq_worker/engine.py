"""What the worker asks of an engine. `torch_engine` and `trtllm_engine` answer."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from uuid import UUID

from maveriq.contracts import (
    ChatMessage,
    Configuration,
    ErrorCode,
    FinishReason,
    InferenceError,
    Model,
    PositionLogprobs,
    Precision,
    Sampling,
    ServedTime,
)


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU of this node, or one declared share of its CPU memory."""

    gpu: str
    """The id that placements name."""
    kind: Literal["cuda", "cpu"]
    index: int
    """CUDA ordinal, or the number of the CPU device."""


@dataclass(frozen=True, slots=True)
class LocalStage:
    """A stage of a placement with this node's devices in place of GPU ids."""

    devices: tuple[Device, ...]
    """One for each TP rank, in rank order."""
    num_layers: int
    reserved_bytes: int
    """On each device; weights, KV cache and activations stay within it."""
    precisions: tuple[Precision, ...] = ()
    """Of its layers' weights, first to last. Empty: the configuration's."""


@dataclass(frozen=True, slots=True)
class Launch:
    """All that an engine needs to run one replica."""

    model: Model
    configuration: Configuration
    stages: tuple[LocalStage, ...]
    cache_dir: Path
    """Where converted checkpoints are kept."""
    threads_per_stage: int
    """CPU threads of each stage's process."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One request as an engine sees it: exactly one of `prompt` and `messages` is given."""

    request_id: UUID
    prompt: str | Sequence[int] | None
    messages: Sequence[ChatMessage] | None
    sampling: Sampling

    @property
    def seed(self) -> int:
        """The request's own; else of its id: another attempt, on another replica too, yields the same tokens."""
        return self.request_id.int % 2**63 if self.sampling.seed is None else self.sampling.seed

    @property
    def num_chars(self) -> int:
        """That are to be tokenised."""
        if self.messages is not None:
            return sum(len(message.content) for message in self.messages)
        return len(self.prompt) if isinstance(self.prompt, str) else 0


@dataclass(frozen=True, slots=True)
class Produced:
    """What one step added to one request. The last has a finish_reason."""

    token_ids: tuple[int, ...]
    text: str
    prompt_tokens: int
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class StageStats:
    weight_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    active: int
    """Requests in decode slots."""
    waiting: int
    """Requests that wait for a slot."""
    stages: tuple[StageStats, ...]


class EngineFailed(Exception):
    """The engine could not start, or died; its requests can be served elsewhere."""


class CheckpointUnusable(EngineFailed):
    """The variant's checkpoint cannot be read or converted: another placement of it would fail alike."""


class RequestRefused(Exception):
    """This request can never be answered by this engine."""

    def __init__(self, code: ErrorCode, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.error = InferenceError(code=code, field=field, problem=problem, remedy=remedy)


class Engine(Protocol):
    async def start(self, launch: Launch) -> None:
        """Load the model and be ready to generate.

        Raises:
            EngineFailed: with what to do about it. Nothing is left running.
        """
        ...

    def generate(self, generation: Generation) -> AsyncIterator[Produced]:
        """The answer, step by step. Requests decode together; closing the iterator frees the slot.

        Raises:
            RequestRefused: before anything is produced.
            EngineFailed: the engine died under it.
        """
        ...

    def stats(self) -> EngineStats: ...

    def times(self) -> tuple[ServedTime, ...]:
        """What passes took since this was last asked: only those that the law's times may be compared with."""
        ...

    async def wait_failed(self) -> str:
        """Return only when the engine has died by itself, with the reason."""
        ...

    async def stop(self) -> None:
        """End every process and give the memory back. Again is harmless."""
        ...
