"""Stand-ins that keep the real thing's contract: a worker that answers from a script, and messages to feed services."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from maveriq.bus import Bus, RequestConsumer, RequestDelivery
from maveriq.contracts import (
    Admission,
    Candidate,
    Chunk,
    ChunksProduced,
    Configuration,
    Fingerprint,
    FinishReason,
    InferenceError,
    Intent,
    Model,
    ModelFacts,
    Placement,
    Plan,
    PositionLogprobs,
    Precision,
    Prediction,
    RequestSubmitted,
    Sample,
    Stage,
    StageMemory,
    Timing,
    TokenLogprob,
    Usage,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MODEL = Model(name="smol", source="HuggingFaceTB/SmolLM2-135M-Instruct")
INTENT = Intent(model="smol")
ADMISSION = Admission(intent=INTENT, model=MODEL)

FACTS = ModelFacts(
    architecture="LlamaForCausalLM", shape_key="k", num_layers=30, hidden_size=576, intermediate_size=1536,
    vocab_size=49152, num_heads=9, num_kv_heads=3, head_dim=64, max_context_tokens=8192, layer_params=3_540_096,
    embedding_params=28_311_552, lm_head_params=28_312_128, tied_embeddings=True,
)  # fmt: skip

FINGERPRINT = Fingerprint(
    engine="torch", engine_version="2", gpu_type="cpu-1t", precision=Precision.FP32, kv_precision=Precision.FP32,
    tp_degrees=(1,), max_pp=4, hop_ms=0.1, cost_s=3.0,
    samples=tuple(
        Sample(
            num_layers=num_layers, batch=1, input_tokens=64, output_tokens=8, prefill_ms=10.0 * num_layers,
            decode_ms=2.0 * num_layers, activation_bytes=1_000_000, runtime_bytes=0,
        )
        for num_layers in (1, 2)
    ),
)  # fmt: skip

CANDIDATE = Candidate(
    configuration=Configuration(
        engine="torch", gpu_type="cpu-1t", tp=1, pp=2, precision=Precision.FP32, kv_precision=Precision.FP32,
        max_batch=4, context_tokens=1280,
    ),
    prediction=Prediction(
        ttft_ms=200, tpot_ms=40, e2e_ms=5000, throughput_tokens_per_s=90, memory_bytes=700_000_000, gpu_s=10,
        accuracy=1.0,
    ),
    memory=StageMemory(
        layer_bytes=15_000_000, first_bytes=113_000_000, last_bytes=113_000_000, tied_saving_bytes=113_000_000,
        runtime_bytes=5_000_000,
    ),
    score=1.0,
)  # fmt: skip

PLAN = Plan(facts=FACTS, candidates=(CANDIDATE,), num_considered=9)


def placement(replica: int = 0, token: str = "t0", node: str = "n1") -> Placement:
    return Placement(
        replica=replica,
        token=token,
        node=node,
        model=MODEL,
        candidate=CANDIDATE,
        stages=(
            Stage(gpus=(f"{node}/cpu:0",), num_layers=18, reserved_bytes=400_000_000),
            Stage(gpus=(f"{node}/cpu:1",), num_layers=12, reserved_bytes=300_000_000),
        ),
    )


class FakeWorker:
    """Consumes a deployment's requests and streams a script's tokens, one chunk each, as a worker does.

    It speaks the words of `script(request)`, up to the request's max_tokens; `fail(request)` may name an error
    instead, and `hold` keeps it silent after the first token until it is set.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        script: Callable[[RequestSubmitted], Sequence[str]] = lambda request: ("Hello", ",", " wörld", "!"),
        fail: Callable[[RequestSubmitted], InferenceError | None] = lambda request: None,
        fail_after_tokens: int = 0,
    ) -> None:
        self.bus = bus
        self.hold = asyncio.Event()
        self.hold.set()
        self.seen: list[RequestDelivery] = []
        self._script = script
        self._fail = fail
        self._fail_after_tokens = fail_after_tokens
        self._consumers: list[RequestConsumer] = []
        self._answering: set[asyncio.Task[None]] = set()

    async def serve(self, deployment_id: UUID) -> None:
        self._consumers.append(await self.bus.consume_requests(deployment_id, self._receive, slots=16))

    async def stop(self) -> None:
        for consumer in self._consumers:
            await consumer.cancel()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def _receive(self, delivery: RequestDelivery) -> None:
        self.seen.append(delivery)
        task = asyncio.ensure_future(self._answer(delivery))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, delivery: RequestDelivery) -> None:
        request = delivery.request
        error = self._fail(request)
        words = list(self._script(request))
        wanted = request.sampling.max_tokens or len(words)
        said = words[: self._fail_after_tokens if error else wanted]
        for index, word in enumerate(said):
            await self._send(delivery, _token(request, delivery.attempt, index, word))
            await self.hold.wait()
        if error is not None:
            ending = {"finish_reason": FinishReason.ERROR, "error": error}
        else:
            reason = FinishReason.LENGTH if wanted < len(words) else FinishReason.STOP
            ending = {
                "finish_reason": reason,
                "usage": Usage(prompt_tokens=7, completion_tokens=len(said)),
                "timing": Timing(queue_ms=1, prefill_ms=2, decode_ms=3),
            }
        last = Chunk(request_id=request.request_id, attempt=delivery.attempt, index=len(said))
        await self._send(delivery, last.model_copy(update=ending))
        await delivery.ack()

    async def _send(self, delivery: RequestDelivery, chunk: Chunk) -> None:
        assert delivery.reply_to is not None
        confirm = chunk.finish_reason is not None
        await self.bus.send(delivery.reply_to, ChunksProduced(chunks=(chunk,)), confirm=confirm)


def _token(request: RequestSubmitted, attempt: int, index: int, word: str) -> Chunk:
    logprobs = None
    if request.sampling.logprobs is not None:
        chosen = TokenLogprob(token=word, token_id=index, logprob=-0.5)
        others = tuple(
            TokenLogprob(token=f"{word}{n}", token_id=100 + n, logprob=-1.0 - n)
            for n in range(max(0, request.sampling.logprobs - 1))
        )
        top = (chosen, *others) if request.sampling.logprobs else ()
        logprobs = (PositionLogprobs(chosen=chosen, top=top),)
    return Chunk(
        request_id=request.request_id, attempt=attempt, index=index, text=word, token_ids=(index,), logprobs=logprobs
    )
