"""Finds memory for a calibration to measure in, and holds it: snapshot, decision, commit, as for replicas."""

from dataclasses import dataclass

from maveriq.contracts import MemoryRequested
from maveriq_allocator.holds import MAX_TAKEN, Answer, Holds, best_place, largest_bytes, why_none
from maveriq_allocator.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Lending:
    inventory: Inventory
    holds: Holds
    node_timeout_s: float

    async def lend(self, wanted: MemoryRequested) -> Answer:
        """Bytes of one GPU, those that the id holds already, or why there are none (any more)."""
        await self.holds.end()
        for _ in range(MAX_TAKEN):
            nodes = (await self.inventory.snapshot()).heard(self.node_timeout_s)
            if await self.holds.is_wanted_back():
                most = largest_bytes(wanted, nodes)
                return Answer(None, "a deployment needs the memory of calibrations", largest_bytes=most)
            place = await self.holds.find(wanted.hold_id) or best_place(wanted, nodes)
            if place is None:
                return Answer(None, why_none(wanted, nodes), largest_bytes=max(0, largest_bytes(wanted, nodes)))
            answer = await self.holds.take(wanted, place)
            if answer is not None:
                return answer
        return Answer(None, f"others were faster {MAX_TAKEN} times; it is worth asking again")

    async def end(self) -> list[str]:
        """Give back all whose time is over; the nodes where that freed something."""
        return [place.node for place in await self.holds.end()]
