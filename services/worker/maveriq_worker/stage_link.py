"""One end of a private socket between two processes of a replica: pickled values, each with its length before it.

Both ends run this very package and nobody else has the socket, so pickle brings in nothing foreign.
"""

import asyncio
import pickle
import select
import socket
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

    def receive(self) -> Any:
        """Wait for the next value.

        Raises:
            Gone: the other end is closed.
        """
        return pickle.loads(self._exactly(int.from_bytes(self._exactly(_LENGTH_BYTES), "big")))

    def _exactly(self, length: int) -> bytes:
        try:
            received = self._end.recv(length, socket.MSG_WAITALL)
        except OSError as error:
            raise Gone from error
        if len(received) < length:
            raise Gone
        return received


def ready(links: list[Link], timeout_s: float | None) -> list[Link]:
    """Those with something to receive; waits up to `timeout_s` (None: as long as it takes)."""
    return select.select(links, [], [], timeout_s)[0]
