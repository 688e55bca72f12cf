"""What a worker and an engine's own process say to each other, over a private socket (stage_link.py)."""

import asyncio
from dataclasses import dataclass

from maveriq.contracts import InferenceError
from maveriq_worker.engine import Generation, Launch, Produced, StageStats
from maveriq_worker.stage_link import Gone, frame, read


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


def write_frame(writer: asyncio.StreamWriter, said: Frame) -> None:
    writer.write(frame(said))


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame; None where the other side is gone."""
    try:
        said: Frame = await read(reader)
    except Gone:
        return None
    return said
