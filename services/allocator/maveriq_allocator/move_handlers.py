"""Messages about replicas that are to move: in, and what they cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maveriq.bus import Handler
from maveriq.contracts import DefragmentationRequested, Message, MoveRequested
from maveriq_allocator import lifecycle
from maveriq_allocator.handlers import Handlers


@dataclass(frozen=True, slots=True)
class MoveHandlers:
    handlers: Handlers

    async def on_defragmentation_requested(self, message: DefragmentationRequested) -> Sequence[Message]:
        """Say the moves; the first is due at once if they are to be made."""
        told = await self.handlers.defragmenting.plan(message)
        first = MoveRequested(defragmentation_id=told.defragmentation_id, number=told.num_done)
        return [told] if told.finished else [told, first]

    async def on_move_requested(self, message: MoveRequested) -> Sequence[Message]:
        """Start the copy that the move needs, or say that all are done, or why it does not go on."""
        defragmenting = self.handlers.defragmenting
        told = await defragmenting.progressed(message.defragmentation_id, message.number)
        if told is None or told.finished or message.number < told.num_done:
            return [] if told is None else [told]
        move = told.moves[message.number]
        moved = await defragmenting.move(message.defragmentation_id, message.number, move)
        if isinstance(moved, str):
            stopped = await defragmenting.stopped(message.defragmentation_id, moved)
            return [stopped or told]
        changed = await self.handlers.inventory_changed(lifecycle.changed_nodes(moved))
        return [told, *lifecycle.starting(moved), *changed]

    def all(self) -> list[Handler[Any]]:
        return [
            Handler(DefragmentationRequested, self.on_defragmentation_requested),
            Handler(MoveRequested, self.on_move_requested),
        ]
