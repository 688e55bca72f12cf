"""What a service gives the bus for each message that it consumes."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from maveriq.contracts import Message

M = TypeVar("M", bound=Message)
Replies = Message | Sequence[Message] | None


@dataclass(frozen=True, slots=True)
class Handler(Generic[M]):
    """Binds one message type to one coroutine; the type checker holds the two together."""

    message: type[M]
    run: Callable[[M], Awaitable[Replies]]
    prefetch: int = 8
