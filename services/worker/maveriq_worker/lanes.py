"""Takes one replica's requests: those for any replica, those of its own GPU type, and others' while a slot is free.

A type's own replicas come first at the broker (rank). What they have no room for waits in their queue, and a replica of
another type takes it as a guest: one request of each queue at a time, and none while its own slots are full, so that no
request lies with a replica that cannot begin it while another one could.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from uuid import UUID

from maveriq.bus import Bus, RequestConsumer, RequestDelivery, Unavailable, Unroutable
from maveriq.contracts import Lane

SETTLE_S = 0.05  # a slot free for so long stays free: its own queue's next request comes within milliseconds
LOOK_S = 2.0  # however busy, it takes a request of each other type so often: that type may have nobody left
MISSING_S = (0.1, 2.0)  # first and longest pause before a queue that is not there yet is looked for again


class Lanes:
    def __init__(
        self,
        bus: Bus,
        deployment_id: UUID,
        receive: Callable[[RequestDelivery], None],
        slots: int,
        lanes: Sequence[Lane],
        has_room: Callable[[], bool],
    ) -> None:
        """
        Args:
            has_room: whether a request that came now would begin now.
        """
        self._bus = bus
        self._deployment_id = deployment_id
        self._receive = receive
        self._slots = slots
        self._lanes = lanes
        self._has_room = has_room
        self._changed = asyncio.Event()
        self._consumers: list[RequestConsumer] = []
        self._guests: list[RequestConsumer] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._hosting: asyncio.Task[None] | None = None
        self._is_closed = False

    async def open(self) -> None:
        """Raises Unroutable where the deployment has no queues."""
        self._consumers.append(await self._bus.consume_requests(self._deployment_id, self._receive, slots=self._slots))
        later = [lane for lane in self._lanes if not await self._join(lane)]
        self._tasks = [asyncio.create_task(self._join_later(lane)) for lane in later]
        if any(lane.rank for lane in self._lanes):
            self._hosting = asyncio.create_task(self._host())

    async def close(self) -> None:
        """Take no more; what is in hand stays in hand. Again is harmless."""
        self._is_closed = True
        self.note()
        hosting, self._hosting = self._hosting, None
        if hosting is not None:
            await asyncio.wait({hosting})  # not cancelled: amid a call its channel would close, with what is in hand
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        consumers, self._consumers = self._consumers, []
        for consumer in consumers:
            await consumer.cancel()

    def note(self) -> None:
        """A request came, or went: there may be room, or none."""
        self._changed.set()

    async def _join(self, lane: Lane) -> bool:
        """False: its queues are not there yet."""
        try:
            consumer = await self._consume(lane)
        except (Unroutable, Unavailable):
            return False
        self._consumers.append(consumer)
        if lane.rank:
            self._guests.append(consumer)
            self.note()
        return True

    async def _join_later(self, lane: Lane) -> None:
        """As soon as the queues are there: they are opened once the plan is heard, which may be later."""
        pause_s, longest_s = MISSING_S
        while not await self._join(lane):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, longest_s)

    async def _consume(self, lane: Lane) -> RequestConsumer:
        is_guest = lane.rank > 0
        return await self._bus.consume_requests(
            self._deployment_id,
            self._receive,
            slots=1 if is_guest else self._slots,
            gpu_type=lane.gpu_type,
            rank=lane.rank,
            paused=is_guest,
        )

    async def _host(self) -> None:
        """Let guests in while there is room, and now and then where there is none."""
        clock, is_open = asyncio.get_running_loop().time, False
        look_at = clock() + LOOK_S
        while not self._is_closed:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._changed.wait()
            self._changed.clear()
            if self._has_room() and not is_open:
                await asyncio.sleep(SETTLE_S)
            if self._is_closed:
                return
            is_open = self._has_room()
            if is_open or clock() >= look_at:
                look_at = clock() + LOOK_S
                await self._each_guest(lambda guest: guest.resume())
            else:
                await self._each_guest(lambda guest: guest.pause())

    async def _each_guest(self, tell: Callable[[RequestConsumer], Awaitable[None]]) -> None:
        for guest in tuple(self._guests):
            with suppress(Unavailable):
                await tell(guest)
