"""The connection to Redis: every call has a time-out, and is tried again while Redis restarts."""

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, TimeoutError

TIMEOUT_S = 5.0
RETRIES = 10  # with the back-off below about 20 s: a restart of Redis is not a failed message

Store = Any
"""A redis.asyncio client that decodes responses; its own annotations leave most types open."""


def connect(url: str) -> Store:
    client: Store = Redis
    return client.from_url(
        url,
        decode_responses=True,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        health_check_interval=30,
        retry=Retry(ExponentialBackoff(cap=3.0, base=0.05), RETRIES),
        retry_on_error=[ConnectionError, TimeoutError],
    )
