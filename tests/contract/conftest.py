"""A worker, and a cluster that calibrates, as several files of contract tests have them."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.contracts import NodeReported
from maveriq.topology import WORKER
from tests.contract.calibration_cluster import SIZE, Cluster
from tests.contract.worker_scene import Scene, start


@pytest.fixture
async def scene(broker: InProcessBroker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr("maveriq_worker.replica.DRAIN_QUIET_S", 0.05)
    made = Scene(broker, InProcessBus(broker), InProcessBus(broker), [], uuid4())
    ears = await made.outside.mailbox(made.heard)
    for message in WORKER.emits:
        await ears.bind(message.topic)
    await made.outside.open_requests(made.deployment_id)
    start(made)
    await made.hears(NodeReported)
    yield made
    await made.stop()
    await made.bus.close()
    await made.outside.close()


@pytest.fixture
async def cluster(redis_url: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(redis_url)
    await cluster.node(10 * SIZE)
    yield cluster
    await cluster.close()
