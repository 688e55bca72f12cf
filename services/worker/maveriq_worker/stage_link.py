"""One end of a private socket between two processes of a replica: pickled values, each with its length before it.

Both ends run this very package and nobody else has the socket, so pickle brings in nothing foreign.
"""

import asyncio
import os
import pickle
import select
import socket
import time
from typing import Any

_LENGTH_BYTES = 4
BUFFER_BYTES = 4 << 20  # a worker that lags for a moment does not hold up the steps


class Gone(Exception):
    """The process at the other end has ended."""


def frame(value: object) -> bytes:
    body = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


async def read(reader: asyncio.StreamReader) -> Any:
    """The next value.

    Raises:
        Gone: the other end is closed.
    """
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        return pickle.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Gone from error


def pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return ends


class Link:
    """Blocking end, for the stages' processes."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, value: object) -> None:
        try:
            self._end.sendall(frame(value))
        except OSError as error:
            raise Gone from error

    def receive(self, spin_s: float = 0.0) -> Any:
        """Wait for the next value; awake for the first `spin_s`, see `ready`.

        Raises:
            Gone: the other end is closed.
        """
        if spin_s:
            ready([self], None, spin_s)
        return pickle.loads(self._exactly(int.from_bytes(self._exactly(_LENGTH_BYTES), "big")))

    def _exactly(self, length: int) -> bytes:
        try:
            received = self._end.recv(length, socket.MSG_WAITALL)
        except OSError as error:
            raise Gone from error
        if len(received) < length:
            raise Gone
        return received


def ready(links: list[Link], timeout_s: float | None, spin_s: float = 0.0) -> list[Link]:
    """Those with something to receive; waits up to `timeout_s` (None: as long as it takes).

    Args:
        spin_s: look again and again for so long before sleeping: a core that slept computes more slowly at first.
            Whoever else wants the core gets it.
    """
    until = time.perf_counter() + spin_s if spin_s else 0.0
    while spin_s and time.perf_counter() < until:
        heard = select.select(links, [], [], 0)[0]
        if heard:
            return heard
        os.sched_yield()
    return select.select(links, [], [], timeout_s)[0]
