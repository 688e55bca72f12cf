"""accuracy.requested -> accuracy.progressed, over and over, then accuracy.measured"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from maveriq.bus import Handler
from maveriq.contracts import AccuracyMeasured, AccuracyProgressed, AccuracyRequested, Message


class Measuring(Protocol):
    async def measure(
        self, asked: AccuracyRequested, report: Callable[[AccuracyProgressed], Awaitable[None]]
    ) -> AccuracyMeasured: ...


@dataclass(frozen=True, slots=True)
class AccuracyHandlers:
    measuring: Measuring
    publish: Callable[[Message], Awaitable[None]]

    async def on_accuracy_requested(self, message: AccuracyRequested) -> AccuracyMeasured:
        """Unacked until it is measured, so that another rig does it if this one dies."""
        return await self.measuring.measure(message, self._tell)

    async def _tell(self, progressed: AccuracyProgressed) -> None:
        await self.publish(progressed)

    def all(self) -> list[Handler[Any]]:
        return [Handler(AccuracyRequested, self.on_accuracy_requested, prefetch=1)]
