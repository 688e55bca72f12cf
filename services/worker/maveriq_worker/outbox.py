"""Sends each client one message an engine step: the tokens of all of its requests.

An engine step wakes the tasks of all requests that it advanced. Each puts its chunk into its
client's lane, and the first of them asks for a flush, which the loop runs after the others. So a
step's tokens travel together without waiting for a clock; the cost is per message, not per token.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto

from maveriq.bus import Bus, Encoded, MailboxGone, Unavailable
from maveriq.contracts import ChunksProduced

CONFIRM_EVERY_S = 2.0  # only a confirmed message tells that a client has left: send one at least so often
RESEND_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # a broker that restarts is back within their sum


class Sent(Enum):
    """What became of a last chunk."""

    KEPT = auto()
    """It is in the client's mailbox."""
    GONE = auto()
    """The client has left."""
    UNSURE = auto()
    """The broker does not answer."""


class Lane:
    """The way to one client's mailbox, shared by its requests."""

    def __init__(self, outbox: "Outbox", address: str, confirm_at: float) -> None:
        self.address = address
        self.num_requests = 0
        self.confirm_at = confirm_at
        self.chunks: list[str] = []
        self.lasts: list[asyncio.Future[Sent]] = []
        self.sending = False
        self._outbox = outbox

    def put(self, chunk: str) -> None:
        """Send it, as JSON, with whatever else this step makes for this client."""
        if not self.chunks:
            self._outbox.fill(self)
        self.chunks.append(chunk)

    def put_last(self, chunk: str) -> asyncio.Future[Sent]:
        """As `put`, but confirmed: what became of it."""
        self.put(chunk)
        last: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        self.lasts.append(last)
        return last


class Outbox:
    """All lanes of one replica."""

    def __init__(self, bus: Bus, client_gone: Callable[[str], None]) -> None:
        """
        Args:
            client_gone: told the address of a client that has left.
        """
        self._bus = bus
        self._client_gone = client_gone
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[str, Lane] = {}
        self._filled: list[Lane] = []
        self._sends: set[asyncio.Task[None]] = set()

    def open_lane(self, address: str) -> Lane:
        """The lane to a client, for one more request; `close_lane` gives it back."""
        lane = self._lanes.get(address)
        if lane is None:
            lane = self._lanes[address] = Lane(self, address, self._loop.time() + CONFIRM_EVERY_S)
        lane.num_requests += 1
        return lane

    def close_lane(self, lane: Lane) -> None:
        lane.num_requests -= 1
        if lane.num_requests == 0:
            del self._lanes[lane.address]

    def fill(self, lane: Lane) -> None:
        """A lane has something to send: once all tasks that this step woke have run."""
        if not self._filled:
            self._loop.call_soon(self._flush)
        self._filled.append(lane)

    def _flush(self) -> None:
        filled, self._filled = self._filled, []
        for lane in filled:
            # A broker that takes no more holds back the next message, which then carries more.
            if not lane.sending or lane.lasts:
                self._start_sending(lane)

    def _start_sending(self, lane: Lane) -> None:
        message = Encoded(ChunksProduced.topic, f'{{"chunks":[{",".join(lane.chunks)}]}}'.encode())
        lasts = lane.lasts
        lane.chunks, lane.lasts = [], []
        if lasts or self._loop.time() >= lane.confirm_at:
            lane.confirm_at = self._loop.time() + CONFIRM_EVERY_S
            sending = self._loop.create_task(self._send_confirmed(lane.address, message, lasts))
        else:
            lane.sending = True
            sending = self._loop.create_task(self._send_unconfirmed(lane, message))
        self._sends.add(sending)
        sending.add_done_callback(self._sends.discard)

    async def _send_unconfirmed(self, lane: Lane, message: Encoded) -> None:
        try:
            await self._bus.send(lane.address, message, confirm=False)
        finally:
            lane.sending = False
            if lane.chunks and lane not in self._filled:
                self.fill(lane)

    async def _send_confirmed(self, address: str, message: Encoded, lasts: list[asyncio.Future[Sent]]) -> None:
        sent = await self._confirm(address, message)
        for last in lasts:
            if not last.done():
                last.set_result(sent)
        if sent is Sent.GONE:
            self._client_gone(address)

    async def _confirm(self, address: str, message: Encoded) -> Sent:
        for delay_s in (*RESEND_DELAYS_S, None):
            try:
                await self._bus.send(address, message, confirm=True)
            except MailboxGone:
                return Sent.GONE
            except Unavailable:
                if delay_s is not None:
                    await asyncio.sleep(delay_s)
            else:
                return Sent.KEPT
        return Sent.UNSURE
