"""Hears which engines start on the processor that this profiler measures: a calibration rests until they serve.

Heard on a mailbox, so that every profiler of a GPU type hears all of it; what one misses costs time and no more.
"""

import asyncio
from dataclasses import dataclass

from maveriq.bus import Bus
from maveriq.contracts import Message, PlacementReserved, ReplicaFailed, ReplicaLost, ReplicaReady, ReplicaStopped
from maveriq_profiler.preemption import Preemption

LONGEST_S = 600.0  # a start whose end was missed does not keep a calibration waiting for ever
ENDS = (ReplicaReady, ReplicaFailed, ReplicaLost, ReplicaStopped)


@dataclass(frozen=True, slots=True)
class Starts:
    preemption: Preemption
    gpu_type: str
    """Of this processor. A profiler does not know its node: an engine anywhere on this type counts."""

    async def open(self, bus: Bus) -> None:
        """From now on, until the bus is closed."""
        mailbox = await bus.mailbox(self.hear, name="profiler")
        for key in (f"{PlacementReserved.topic}.#", *(message.topic for message in ENDS)):
            await mailbox.bind(key)

    def hear(self, message: Message) -> None:
        if isinstance(message, ENDS):
            self.preemption.end(message.token)
        elif isinstance(message, PlacementReserved) and self._is_here(message):
            token = message.placement.token
            self.preemption.begin(token)
            asyncio.get_running_loop().call_later(LONGEST_S, self.preemption.end, token)

    def _is_here(self, message: PlacementReserved) -> bool:
        placed = message.placement
        return any((at.gpu_type or placed.candidate.configuration.gpu_type) == self.gpu_type for at in placed.stages)
