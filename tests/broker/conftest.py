"""The conformance suite runs on each side."""

from collections.abc import AsyncIterator

import pytest

from tests.broker.sides import Echo, InProcessSide, RabbitMqSide, Side


@pytest.fixture(params=["in-process", "rabbitmq"])
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    # not emptied between these tests: each uses names of its own
    rabbitmq = request.param == "rabbitmq"
    side: Side = RabbitMqSide(request.getfixturevalue("rabbitmq_server_url")) if rabbitmq else InProcessSide()
    yield side
    await side.close()


@pytest.fixture
async def echo(side: Side) -> AsyncIterator[Echo]:
    echo = Echo(side)
    yield echo
    await echo.stop()
