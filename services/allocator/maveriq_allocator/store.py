"""The connection to Redis: every call has a time-out, and is tried again while Redis restarts."""

from typing import Any

from redis.asyncio import Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError, TimeoutError

TIMEOUT_S = 5.0
RETRIES = 10  # with the back-off below about 20 s: a restart of Redis is not a failed message

Store = Any
"""A redis.asyncio client that decodes responses; its own annotations leave most types open."""


class PackedConnection(Connection):
    """Writes commands with hiredis, in C, as redis-py's connections without asyncio do: a fifth of the time."""

    def pack_command(self, *args: Any) -> list[bytes]:
        serializer: Any = HiredisRespSerializer()
        packed: list[bytes] = serializer.pack(*args)
        return packed


def connect(url: str) -> Store:
    client: Store = Redis
    plain = {"connection_class": PackedConnection} if url.startswith("redis://") else {}  # others are redis-py's own
    return client.from_url(
        url,
        **plain,
        decode_responses=True,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        health_check_interval=30,
        retry=Retry(ExponentialBackoff(cap=3.0, base=0.05), RETRIES),
        retry_on_error=[ConnectionError, TimeoutError],
    )
