"""An intent whose requests two GPU types share, end to end on RabbitMQ: planned, placed, routed, and nothing lost.

All services run as they are, but for the profiler, whose measurements are written here, and the workers' engines, whose
steps are scripted: what is looked at is where each request goes.
"""

import asyncio
import json
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import aio_pika
import pytest

from maveriq.bus.rabbitmq import RabbitMqBus
from maveriq.cli.api import Api, CommandFailed
from maveriq.client import Client, client_on
from maveriq.contracts import (
    Deployment,
    FingerprintMeasured,
    Histogram,
    Intent,
    IntentAccepted,
    Message,
    Objective,
    Priority,
    Sampling,
    Slo,
    Workload,
)
from maveriq.topology import request_queue
from maveriq_allocator.__main__ import run as allocator
from maveriq_ingress.__main__ import run as ingress
from maveriq_planner.__main__ import run as planner
from maveriq_worker.__main__ import serve
from maveriq_worker.devices import CpuDevices
from maveriq_worker.settings import Settings
from tests.unit.planner.measurements import FACTS, MODEL, Truth, fingerprint
from tests.unit.worker.engine_double import SteppedEngine, until

CHEAP, FAST = "cpu-1t", "cpu-2t"
OLD = fingerprint(Truth())
NEW = fingerprint(Truth(layer=0.5, layer_request=0.04, ends=2, ends_request=0.3, flop=2e-8), gpu_type=FAST)
SIZES = Histogram(input_edges=(64, 400), output_edges=(32,), distribution=((0.9,), (0.1,)), request_rate_per_s=3.0)
INTENT = Intent(
    model=MODEL.name, objective=Objective.MIN_PRICE, slo=Slo(ttft_ms=4000), workload=Workload(histogram=SIZES)
)
"""The cheap type reads a prompt of 64 tokens in 1.4 s and one of 400 in 9 s: long ones need the fast type."""
SHORT, LONG = tuple(range(20)), tuple(range(300))
ANSWER = Sampling(max_tokens=3)


@dataclass
class Node:
    """One worker."""

    name: str
    bus: RabbitMqBus
    engines: list[SteppedEngine] = field(default_factory=list[SteppedEngine])
    serving: "asyncio.Task[None] | None" = None

    def start(self, threads: int, devices: int) -> None:
        shares = ",".join(f"cpu:{at}=1200MiB" for at in range(devices))
        settings = Settings.from_env(
            {
                "MAVERIQ_NODE": self.name, "MAVERIQ_DEVICES": shares, "MAVERIQ_REPORT_S": "0.5",
                "MAVERIQ_THREADS_PER_STAGE": str(threads),
            }
        )  # fmt: skip
        cpus = CpuDevices(self.name, settings.cpu_devices, settings.threads_per_stage)
        self.serving = asyncio.create_task(serve(self.bus, settings, cpus, self._new_engine))

    def _new_engine(self) -> SteppedEngine:
        self.engines.append(SteppedEngine())
        return self.engines[-1]

    @property
    def began(self) -> int:
        return sum(len(engine.generations) for engine in self.engines)

    @property
    def prompts(self) -> list[object]:
        """Of all requests that came so far."""
        return [generation.prompt for engine in self.engines for generation in engine.generations]

    @property
    def now(self) -> int:
        return sum(len(engine.asked) for engine in self.engines)

    def step(self) -> None:
        for engine in self.engines:
            engine.step()


@dataclass
class Cluster:
    url: str
    amqp_url: str
    cheap: Node
    fast: Node
    client: Client

    async def answers(self, *asked: "asyncio.Task[str]") -> list[str]:
        """The finish reasons, while all engines go on."""
        async with asyncio.timeout(30):
            while not all(one.done() for one in asked):
                self.cheap.step()
                self.fast.step()
                await asyncio.sleep(0.005)
        return [one.result() for one in asked]

    def ask(self, deployment: Deployment, prompt: tuple[int, ...]) -> "asyncio.Task[str]":
        async def answer() -> str:
            chunks = [chunk async for chunk in self.client.generate(deployment, prompt, sampling=ANSWER)]
            return str(chunks[-1].finish_reason)

        return asyncio.create_task(answer())

    async def served(self, deployment_id: UUID, replicas: int) -> Deployment:
        """The deployment once all its replicas serve, each its own type's queue and the other's, as its routes say."""

        def get() -> Deployment:
            with urllib.request.urlopen(f"{self.url}/v1/deployments/{deployment_id}", timeout=10) as response:
                return Deployment.model_validate_json(response.read())

        async with asyncio.timeout(30):
            while True:
                found = await asyncio.to_thread(get)
                types = {served.gpu_type for one in found.routes for served in one.served_by}
                if len(found.ready_replicas) == replicas and types == {CHEAP, FAST}:
                    break
                await asyncio.sleep(0.1)
            await self._consumed(deployment_id, replicas)
        return found

    async def _consumed(self, deployment_id: UUID, replicas: int) -> None:
        """Until the broker knows all replicas at both types' queues: a guest may be there before the hosts are."""
        async with await aio_pika.connect(self.amqp_url) as connection:
            channel = await connection.channel()
            names = [request_queue(deployment_id, Priority.NORMAL, each) for each in (CHEAP, FAST)]
            while True:
                queues = [await channel.declare_queue(name, passive=True) for name in names]
                if all(queue.declaration_result.consumer_count == replicas for queue in queues):
                    return
                await asyncio.sleep(0.05)

    async def asked_over_http(self, deployment_id: UUID, prompt: tuple[int, ...]) -> "asyncio.Task[str]":
        body = {"model": str(deployment_id), "prompt": prompt, "max_tokens": 3}

        def post() -> str:
            request = urllib.request.Request(
                f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                return str(json.load(response)["choices"][0]["finish_reason"])

        return asyncio.ensure_future(asyncio.to_thread(post))


@pytest.fixture
async def cluster(rabbitmq_url: str, redis_url: str) -> AsyncIterator[Cluster]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    env = {
        "MAVERIQ_REDIS_URL": redis_url, "MAVERIQ_HTTP_HOST": "127.0.0.1", "MAVERIQ_HTTP_PORT": str(port),
        "MAVERIQ_PRICES": f"{CHEAP}=0.05,{FAST}=0.4", "MAVERIQ_MAX_PP": "1", "MAVERIQ_NODE_TIMEOUT_S": "60",
    }  # fmt: skip
    async with AsyncExitStack() as stack:

        async def a_bus() -> RabbitMqBus:
            made = await RabbitMqBus.connect(rabbitmq_url)
            stack.push_async_callback(made.close)
            return made

        running: list[asyncio.Task[Any]] = []

        async def stop() -> None:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

        outside = await a_bus()
        client = await stack.enter_async_context(client_on(outside))
        measuring: set[asyncio.Task[None]] = set()

        def measure(message: Message) -> None:
            assert isinstance(message, IntentAccepted)
            measured = FingerprintMeasured(
                deployment_id=message.deployment_id, admission=message.admission, facts=FACTS, fingerprints=(OLD, NEW)
            )
            task = asyncio.ensure_future(outside.publish(measured))
            measuring.add(task)
            task.add_done_callback(measuring.discard)

        accepted = await outside.mailbox(measure)
        await accepted.bind(IntentAccepted.topic)
        running += [asyncio.create_task(service(await a_bus(), env)) for service in (ingress, planner, allocator)]
        cheap, fast = Node("cheap", await a_bus()), Node("fast", await a_bus())
        cheap.start(threads=1, devices=4)
        fast.start(threads=2, devices=1)
        running += [node.serving for node in (cheap, fast) if node.serving is not None]
        stack.push_async_callback(stop)
        url = f"http://127.0.0.1:{port}"
        while await asyncio.to_thread(num_nodes, url) < 2:
            assert not any(one.done() for one in running), [one.exception() for one in running if one.done()]
            await asyncio.sleep(0.1)
        yield Cluster(url, rabbitmq_url, cheap, fast, client)


def num_nodes(url: str) -> int:
    """That ingress has heard of; it may not listen yet."""
    with suppress(CommandFailed):
        return len(Api(url).inventory())
    return 0


async def test_requests_go_to_the_type_of_their_size_overflow_to_the_next_and_survive_their_type(
    cluster: Cluster,
) -> None:
    client, cheap, fast = cluster.client, cluster.cheap, cluster.fast
    await client.register(MODEL)
    deployment = await client.deploy(INTENT)
    assert deployment.plan is not None and deployment.plan.fleet is not None
    parts = {part.configuration.gpu_type: part for part in deployment.plan.fleet.parts}
    assert set(parts) == {CHEAP, FAST}
    replicas = sum(part.replicas for part in parts.values())
    deployment = await cluster.served(deployment.deployment_id, replicas)

    # by size, over AMQP and HTTP: the fast type also takes the few short ones that its long ones leave room for
    prompts = (LONG, SHORT, SHORT, SHORT)
    asked = [cluster.ask(deployment, prompt) for prompt in prompts]
    asked += [await cluster.asked_over_http(deployment.deployment_id, prompt) for prompt in prompts]
    await until(lambda: cheap.now + fast.now == 8)
    assert fast.prompts.count(LONG) == 2
    assert set(cheap.prompts) == {SHORT}
    assert await cluster.answers(*asked) == ["length"] * 8

    # what is over goes to the next
    slots = parts[FAST].configuration.max_batch * parts[FAST].replicas
    asked = [cluster.ask(deployment, LONG) for _ in range(slots + 3)]
    await until(lambda: fast.now == slots and cheap.now == 3)
    assert await cluster.answers(*asked) == ["length"] * (slots + 3)

    # all replicas of a type die with requests in hand: the others answer these, and what comes then
    asked = [cluster.ask(deployment, LONG) for _ in range(slots + 3)]
    await until(lambda: fast.now == slots)
    fast.engines.clear()  # nobody steps them any more
    await fast.bus.close()
    asked.append(cluster.ask(deployment, LONG))
    assert await cluster.answers(*asked) == ["length"] * (slots + 4)
