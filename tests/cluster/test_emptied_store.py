"""Redis is emptied while one deployment serves and two wait: on RabbitMQ all come back by themselves, nothing is lost.

Ingress, allocator and worker run as they are; engines are scripted and plans written here, for nothing of them matters.
"""

import asyncio
import json
import socket
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from maveriq.bus.rabbitmq import RabbitMqBus
from maveriq.contracts import DeploymentKept, PlanComputed, ReleaseRequested
from maveriq_allocator.__main__ import run as allocator
from maveriq_allocator.store import connect
from maveriq_ingress.__main__ import run as ingress
from maveriq_worker.__main__ import serve
from maveriq_worker.devices import CpuDevices
from maveriq_worker.settings import Settings
from tests.unit.allocator.plans import candidate, computed, memory
from tests.unit.worker.engine_double import SteppedEngine

MIB = 2**20
REST_S, GRACE_S = 1.0, 2.0


class Services:
    def __init__(self, amqp_url: str, redis_url: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        self._amqp_url = amqp_url
        self._env = {
            "MAVERIQ_REDIS_URL": redis_url, "MAVERIQ_HTTP_HOST": "127.0.0.1", "MAVERIQ_HTTP_PORT": str(self._port),
            "MAVERIQ_GRACE_S": str(GRACE_S),
        }  # fmt: skip
        self._buses: list[RabbitMqBus] = []
        self._running: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        for service in (ingress, allocator):
            self._running.append(asyncio.create_task(service(await self.bus(), self._env)))
        node = {"MAVERIQ_NODE": "emptied", "MAVERIQ_DEVICES": "cpu:0=100MiB", "MAVERIQ_REPORT_S": "0.5"}
        settings = Settings.from_env(node)
        devices = CpuDevices("emptied", settings.cpu_devices, settings.threads_per_stage)
        self._running.append(asyncio.create_task(serve(await self.bus(), settings, devices, SteppedEngine)))
        await self._until(lambda: bool(self._get("/v1/gpus")))

    async def bus(self) -> RabbitMqBus:
        self._buses.append(await RabbitMqBus.connect(self._amqp_url))
        return self._buses[-1]

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for bus in self._buses:
            await bus.close()

    async def until(self, wanted: Callable[[dict[UUID, str]], bool]) -> None:
        """Until what `maveriq ps` shows, states by deployment, is as wanted."""
        await self._until(
            lambda: wanted({UUID(one["deployment_id"]): one["state"] for one in self._get("/v1/deployments")})
        )

    def _get(self, path: str) -> list[dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]
                return found
        except OSError:
            return []  # it starts

    async def _until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(done):
                ended = [task for task in self._running if task.done()]
                assert not ended, ended
                await asyncio.sleep(0.1)


@pytest.fixture
async def services(rabbitmq_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Services]:
    monkeypatch.setattr(DeploymentKept, "rest_s", REST_S)
    made = Services(rabbitmq_url, redis_url)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def plan(deployment_id: UUID, **intent: Any) -> PlanComputed:
    """Wants most of the one device."""
    one = candidate(gpu_type="cpu-1t", stage=memory(layer=10 * MIB))
    return computed(one, deployment_id=deployment_id, **intent)


async def test_what_serves_serves_on_and_what_waited_waits_on_in_its_order(services: Services, redis_url: str) -> None:
    outside = await services.bus()
    serving, later, first = uuid4(), uuid4(), uuid4()
    for each in (serving, later, first):
        await outside.open_requests(each)  # as ingress does for an intent
    await outside.publish(plan(serving))
    await services.until(lambda seen: seen.get(serving) == "ready")
    await outside.publish(plan(later))
    await outside.publish(plan(first, priority="high"))
    all_three = {serving: "ready", later: "waiting", first: "waiting"}
    await services.until(lambda seen: seen == all_three)
    await asyncio.sleep(2 * REST_S)  # their copies went round
    store = connect(redis_url)
    await store.flushall()
    await store.aclose()
    await services.until(lambda seen: seen == all_three)
    await outside.publish(ReleaseRequested(deployment_id=serving))
    await services.until(lambda seen: seen.get(first) == "ready")
    await services.until(lambda seen: seen == {serving: "released", later: "waiting", first: "ready"})
