"""An engine whose every step the test takes, and what is needed to talk to a worker that runs it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import UUID, uuid4

from maveriq.contracts import (
    Candidate,
    Chunk,
    ChunksProduced,
    Configuration,
    ErrorCode,
    FinishReason,
    Message,
    Model,
    ModelFacts,
    Placement,
    Precision,
    Prediction,
    RequestSubmitted,
    Sampling,
    ServedTime,
    Stage,
    StageMemory,
)
from maveriq_worker.engine import EngineFailed, EngineStats, Generation, Launch, Produced, RequestRefused

NODE = "n1"
PROMPT_TOKENS = 7


class SteppedEngine:
    """Token n of a request is n + its seed % 1000; `step` gives one to each request that generates."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.generations: list[Generation] = []
        self.asked: dict[UUID, asyncio.Future[bool]] = {}
        self.num_stops = 0
        self.timed: tuple[ServedTime, ...] = ()
        """What its passes took, told once."""
        self.hold_start = asyncio.Event()
        self.hold_start.set()
        self.start_error: Exception | None = None
        self.dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self, launch: Launch) -> None:
        self.launches.append(launch)
        await self.hold_start.wait()
        if self.start_error is not None:
            raise self.start_error

    async def generate(self, generation: Generation) -> AsyncIterator[Produced]:
        self.generations.append(generation)
        if generation.prompt == "refuse":
            raise RequestRefused(ErrorCode.CONTEXT_EXCEEDED, "prompt", "too long", "send less")
        if generation.prompt == "bug":
            raise ZeroDivisionError("a bug in the engine")
        wanted = generation.sampling.max_tokens or 3
        try:
            for n in range(wanted):
                self.asked[generation.request_id] = asyncio.get_running_loop().create_future()
                if not await self.asked[generation.request_id]:
                    raise EngineFailed("killed")
                token = n + generation.seed % 1000
                yield Produced(
                    (token,), f"t{token} ", PROMPT_TOKENS, None, FinishReason.LENGTH if n == wanted - 1 else None
                )
        finally:
            self.asked.pop(generation.request_id, None)

    def stats(self) -> EngineStats:
        return EngineStats(active=len(self.asked), waiting=0, stages=())

    def times(self) -> tuple[ServedTime, ...]:
        told, self.timed = self.timed, ()
        return told

    async def wait_failed(self) -> str:
        return await asyncio.shield(self.dead)

    async def stop(self) -> None:
        self.num_stops += 1

    def step(self) -> bool:
        """False, so that a test may step until something holds: `step() or ...`."""
        for asked in list(self.asked.values()):
            if not asked.done():
                asked.set_result(True)
        return False

    def die(self) -> None:
        self.dead.set_result("killed")
        for asked in list(self.asked.values()):
            if not asked.done():
                asked.set_result(False)


class Heard:
    """What arrived in a mailbox, in order."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._arrived = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._arrived.set()

    @property
    def chunks(self) -> list[Chunk]:
        return [chunk for m in self.messages if isinstance(m, ChunksProduced) for chunk in m.chunks]

    def of(self, request_id: UUID) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.request_id == request_id]


def request(
    deployment_id: UUID, *, tokens: int = 3, prompt: str = "hello", seed: int | None = None
) -> RequestSubmitted:
    return RequestSubmitted(
        deployment_id=deployment_id, request_id=uuid4(), prompt=prompt, sampling=Sampling(max_tokens=tokens, seed=seed)
    )


def placement(
    *,
    token: str = "token-1",
    replica: int = 0,
    gpus: tuple[str, ...] = (f"{NODE}/cpu:0",),
    engine: str = "torch",
    max_batch: int = 2,
    facts: ModelFacts | None = None,
) -> Placement:
    configuration = Configuration(
        engine=engine,
        gpu_type="cpu-1t",
        tp=1,
        pp=len(gpus),
        precision=Precision.FP32,
        kv_precision=Precision.FP32,
        max_batch=max_batch,
        context_tokens=128,
    )
    prediction = Prediction(
        ttft_ms=1, tpot_ms=1, e2e_ms=1, throughput_tokens_per_s=1, memory_bytes=1, gpu_s=1, accuracy=None
    )
    memory = StageMemory(layer_bytes=1, first_bytes=0, last_bytes=0, tied_saving_bytes=0, runtime_bytes=0)
    return Placement(
        replica=replica,
        token=token,
        node=NODE,
        model=Model(name="m", source="/models/m"),
        facts=facts,
        candidate=Candidate(configuration=configuration, prediction=prediction, memory=memory, score=1),
        stages=tuple(Stage(gpus=(gpu,), num_layers=1, reserved_bytes=1000) for gpu in gpus),
    )


async def until(holds: Callable[[], object], limit_s: float = 10.0) -> None:
    """Let everyone have their turn until `holds()` is true."""
    async with asyncio.timeout(limit_s):
        while not holds():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)
