"""Servers and buses for tests. Servers are private, started once a run at first use, and emptied for each test."""

import os
from collections.abc import AsyncIterator, Iterator

import pika
import pytest
import pytest_asyncio
import redis as redis_client
import structlog

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.queues import topology_queues
from maveriq.bus.rabbitmq import RabbitMqBus
from maveriq_profiler.children import Children
from tests.servers import RabbitMq, Redis, ServerMissing

# the default draws tracebacks with rich: a tenth of a second each, and tests make many
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and rich would keep it as the width of every console


@pytest.fixture(scope="session")
def rabbitmq_server_url() -> Iterator[str]:
    """The broker of this run, with whatever earlier tests left in it: MAVERIQ_TEST_AMQP_URL, or a private one."""
    if url := os.environ.get("MAVERIQ_TEST_AMQP_URL"):
        yield url
        return
    try:
        server = RabbitMq()
    except ServerMissing as missing:
        pytest.fail(str(missing))
    with server:
        yield server.url


@pytest.fixture(scope="session")
def redis_server_url() -> Iterator[str]:
    """The store of this run: MAVERIQ_TEST_REDIS_URL, which tests empty, or a private one."""
    if url := os.environ.get("MAVERIQ_TEST_REDIS_URL"):
        yield url
        return
    try:
        server = Redis()
    except ServerMissing as missing:
        pytest.fail(str(missing))
    with server:
        yield server.url


@pytest.fixture
def rabbitmq_url(rabbitmq_server_url: str) -> str:
    """A broker without the topology's queues. Queues of nodes and deployments stay: give them names of your own."""
    empty(rabbitmq_server_url)
    return rabbitmq_server_url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """An empty Redis."""
    with redis_client.Redis.from_url(redis_server_url) as connection:
        connection.flushdb()
    return redis_server_url


@pytest.fixture
async def rabbitmq_bus(rabbitmq_url: str) -> AsyncIterator[RabbitMqBus]:
    bus = await RabbitMqBus.connect(rabbitmq_url)
    yield bus
    await bus.close()


@pytest.fixture
def broker() -> InProcessBroker:
    return InProcessBroker()


@pytest.fixture
async def bus(broker: InProcessBroker) -> AsyncIterator[InProcessBus]:
    """One bus on the in-process `broker`."""
    bus = InProcessBus(broker)
    yield bus
    await bus.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def children() -> AsyncIterator[Children]:
    """Processes that measure, all forked from one. Tests that use them run on the session's loop."""
    children = Children(threads=2)
    yield children
    await children.close()


def empty(amqp_url: str) -> None:
    """Delete the topology's queues, with what earlier tests left in them."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    for queue in topology_queues():
        channel.queue_delete(queue.name)
    connection.close()
