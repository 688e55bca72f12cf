"""What a worker and an engine's own process say to each other: pickled, each with its length before it.

Both ends are this very package, joined by a socket pair that nobody else has.
"""

import asyncio
import pickle
from dataclasses import dataclass

from maveriq.contracts import InferenceError
from maveriq_worker.engine import Generation, Launch, Produced, StageStats

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Start:
    launch: Launch


@dataclass(frozen=True, slots=True)
class Ask:
    number: int
    generation: Generation


@dataclass(frozen=True, slots=True)
class Abort:
    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Give the memory back and exit."""


@dataclass(frozen=True, slots=True)
class Started:
    stages: tuple[StageStats, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """The engine did not start, or died."""

    detail: str


@dataclass(frozen=True, slots=True)
class Step:
    """What one step brought to all requests; an InferenceError where one is refused."""

    items: tuple[tuple[int, Produced | InferenceError], ...]


Frame = Start | Ask | Abort | Stop | Started | Failure | Step


def write_frame(writer: asyncio.StreamWriter, frame: Frame) -> None:
    body = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    writer.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame; None where the other side is gone."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        frame: Frame = pickle.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return frame
