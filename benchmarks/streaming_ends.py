"""The processes of `streaming.py`: what serves tokens and what reads them, over the broker and over SSE.

    python benchmarks/streaming_ends.py serve|read ours|sse ...

Servers print how they are reached. Readers take jobs as JSON lines and answer each with one.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from maveriq import Sampling
from maveriq.bus import connect as connect_bus
from maveriq.client import Client
from maveriq.client import connect as connect_client
from maveriq.contracts import Chunk, FinishReason, ServedTime
from maveriq.running import event_loop, relax_gc
from maveriq_worker.engine import EngineStats, Generation, Launch, Produced
from maveriq_worker.serving import Serving

SLOTS = 64


class StepEngine:
    """One token a step for every request, and no computing. Keeps `Engine`."""

    def __init__(self, pace_s: float) -> None:
        """
        Args:
            pace_s: between steps; 0 steps as soon as every request has come back for its next token.
        """
        self._pace_s = pace_s
        self._active = 0
        self._waiting = 0
        self._loop = asyncio.get_running_loop()
        self._step: asyncio.Future[str] = self._loop.create_future()

    async def generate(self, generation: Generation) -> AsyncIterator[Produced]:
        count = generation.sampling.max_tokens or 1
        self._active += 1
        try:
            for index in range(1, count + 1):
                step = self._step
                self._waiting += 1
                if self._waiting == self._active:
                    self._produce_soon()
                text = await step
                finish = FinishReason.LENGTH if index == count else None
                yield Produced(token_ids=(index,), text=text, prompt_tokens=1, finish_reason=finish)
        finally:
            self._active -= 1
            if self._active and self._waiting == self._active:
                self._produce_soon()

    def _produce_soon(self) -> None:
        step, self._step, self._waiting = self._step, self._loop.create_future(), 0
        self._loop.call_later(self._pace_s, self._produce, step)

    def _produce(self, step: "asyncio.Future[str]") -> None:
        step.set_result(f"{time.monotonic():.6f} " if self._pace_s else " word")

    async def start(self, launch: Launch) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats(active=self._active, waiting=0, stages=())

    def times(self) -> tuple[ServedTime, ...]:
        return ()

    async def wait_failed(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def stop(self) -> None: ...


async def serve_ours(url: str, deployment_id: str, pace_s: str) -> None:
    """The worker as it is, but for its engine."""
    bus = await connect_bus(url)
    await bus.open_requests(UUID(deployment_id))
    await Serving(bus, StepEngine(float(pace_s)), UUID(deployment_id), SLOTS).open()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def read_ours(url: str, deployment_id: str) -> None:
    async with connect_client(url) as client:
        await do_jobs(lambda job: _read_ours(client, UUID(deployment_id), job))


async def _read_ours(client: Client, deployment_id: UUID, job: "Job") -> None:
    async for chunk in client.generate(deployment_id, "Hello", sampling=Sampling(max_tokens=job.tokens)):
        job.take(len(chunk.token_ids), chunk.text)


async def serve_sse(pace_s: str) -> None:
    """Plain SSE as ingress serves it: Starlette on uvicorn, here with uvloop and httptools."""
    engine = StepEngine(float(pace_s))

    async def generate(request: Request) -> StreamingResponse:
        return StreamingResponse(events(engine, await request.json()), media_type="text/event-stream")

    application = Starlette(routes=[Route("/", generate, methods=["POST"])])
    config = uvicorn.Config(
        application, port=0, lifespan="off", access_log=False, log_level="error", http="httptools", loop="uvloop"
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn tells nobody
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


async def events(engine: StepEngine, wanted: dict[str, Any]) -> AsyncIterator[bytes]:
    """One event a token; its fields are our chunk's."""
    request_id = wanted["request_id"]
    index = 0
    async for produced in engine.generate(
        Generation(UUID(request_id), "Hello", None, Sampling(max_tokens=wanted["max_tokens"]))
    ):
        event = {"request_id": request_id, "attempt": 1, "index": index, "text": produced.text}
        event["token_ids"] = produced.token_ids
        if produced.finish_reason is not None:
            event["finish_reason"] = produced.finish_reason
        index += 1
        yield b"data: %s\n\n" % json.dumps(event).encode()


async def read_sse(port: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await do_jobs(lambda job: _read_sse(session, port, job))


async def _read_sse(session: aiohttp.ClientSession, port: str, job: "Job") -> None:
    wanted = {"request_id": str(uuid4()), "max_tokens": job.tokens}
    async with session.post(f"http://127.0.0.1:{port}/", json=wanted) as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                chunk = Chunk.model_validate_json(line[6:])
                job.take(len(chunk.token_ids), chunk.text)


class Job:
    """Read so many streams of so many tokens; `timed` ones carry when they were made."""

    def __init__(self, streams: int, tokens: int, timed: bool) -> None:
        self.streams = streams
        self.tokens = tokens
        self.num_taken = 0
        self.latencies_ms: list[float] = []
        self._timed = timed

    def take(self, num_tokens: int, text: str) -> None:
        self.num_taken += num_tokens
        if self._timed:
            self.latencies_ms.append((time.monotonic() - float(text)) * 1000)


async def do_jobs(read: Callable[[Job], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        job = Job(**json.loads(line))
        began = loop.time()
        await asyncio.gather(*(read(job) for _ in range(job.streams)))
        took_s = loop.time() - began
        print(json.dumps({"num": job.num_taken, "took_s": took_s, "latencies_ms": job.latencies_ms}), flush=True)


ENDS: dict[tuple[str, str], Callable[..., Coroutine[Any, Any, None]]] = {
    ("serve", "ours"): serve_ours,
    ("read", "ours"): read_ours,
    ("serve", "sse"): serve_sse,
    ("read", "sse"): read_sse,
}

if __name__ == "__main__":
    relax_gc()
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(ENDS[sys.argv[1], sys.argv[2]](*sys.argv[3:]))
