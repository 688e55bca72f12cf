"""A running ingress for tests: reached over HTTP, with a stand-in for the services behind it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import openai
from openai.types.chat import ChatCompletionMessageParam
from structlog.testing import capture_logs

from maveriq.bus import Bus
from maveriq.contracts import (
    ReplicaReady,
)
from maveriq_ingress.__main__ import run
from tests.fakes import FakeWorker

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello"}]
MODEL = {"name": "smol", "source": "HuggingFaceTB/SmolLM2-135M-Instruct"}


@dataclass
class Door:
    """A running ingress, and what stands for the services behind it."""

    bus: Bus
    url: str
    http: httpx.AsyncClient
    client: openai.AsyncOpenAI

    async def until(self, check: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not await check():  # noqa: ASYNC110  # what it waits for is another process's
                await asyncio.sleep(0.005)

    async def state(self, deployment_id: UUID | str) -> str:
        found: str = (await self.http.get(f"/v1/deployments/{deployment_id}")).json()["state"]
        return found

    async def deploy(self, **intent: Any) -> UUID:
        """Register, ask, and play the services until it is ready."""
        await self.http.post("/v1/models", json=MODEL)
        answer = await self.http.post("/v1/intents", json={"model": "smol"} | intent)
        assert answer.status_code == 202, answer.text
        deployment_id = UUID(answer.json()["deployment_id"])
        await self.bus.publish(ReplicaReady(deployment_id=deployment_id, replica=0, token="t", node="n", load_s=1))
        await self.until(lambda: self._serves(deployment_id))
        return deployment_id

    async def _serves(self, deployment_id: UUID) -> bool:
        return (await self.http.get(f"/v1/models/{deployment_id}")).status_code == 200


@asynccontextmanager
async def ingress(redis_url: str, bus: Bus) -> AsyncIterator[Door]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    serving = asyncio.ensure_future(run(bus, {"MAVERIQ_REDIS_URL": redis_url, "MAVERIQ_HTTP_PORT": str(port)}))
    async with (
        httpx.AsyncClient(base_url=url, timeout=20) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        door = Door(bus, url, http, client)

        async def listens() -> bool:
            assert not serving.done(), serving.exception()
            try:
                return (await http.get("/healthz")).status_code == 200
            except httpx.ConnectError:
                return False

        try:
            await door.until(listens)
            yield door
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def served(door: Door, **script: Any) -> AsyncIterator[FakeWorker]:
    worker = FakeWorker(door.bus, **script)
    await worker.serve(await door.deploy())
    try:
        yield worker
    finally:
        await worker.stop()


async def none_serves(door: Door) -> bool:
    return (await door.client.models.retrieve("smol")).model_dump()["deployments"] == []


@asynccontextmanager
async def quiet_ingress(redis_url: str, bus: Bus) -> AsyncIterator[Door]:
    """An ingress that must log no error."""
    with capture_logs() as logged:
        async with ingress(redis_url, bus) as opened:
            yield opened
    assert [one for one in logged if one["log_level"] == "error"] == []
