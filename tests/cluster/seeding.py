"""A calibration and a config that are known beforehand: for systems of which a test asks something else."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

from redis.asyncio import Redis
from transformers import LlamaConfig

from maveriq import law
from maveriq.contracts import ModelFacts, Precision, RunSample
from maveriq.engine_version import engine_version
from maveriq_profiler.facts import facts_of, read
from maveriq_profiler.kept_readings import KeptReadings
from maveriq_profiler.measuring import changed_ns
from maveriq_profiler.pool import Outcome, Pool
from maveriq_profiler.refitting import Refitting
from maveriq_profiler.samples import Samples

POOL = Pool("torch", engine_version("torch"), "cpu-1t", 4)
FAR_TOO_FAST: Mapping[str, float] = {
    "step": 0.01, "layer[full]": 0.001, "weights": 0.1, "head": 0.1, "rows@2": 10.0, "rows@4": 10.0, "requests": 0.001,
    "prompt": 0.05, "compute": 1.0, "prompt_head": 0.1, "hop.tp1": 0.005,
}  # fmt: skip
"""No CPU is: as if a GPU type had been calibrated before something slowed it down a hundred times."""
LIKELY = {name: 100 * constant for name, constant in FAR_TOO_FAST.items()}
SHAPES = ((64, 2), (128, 4), (96, 8))
"""Hidden sizes and layers of what was measured."""


async def calibrate(
    redis_url: str,
    constants: Mapping[str, float],
    *,
    precisions: Sequence[Precision] = (Precision.FP32,),
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> None:
    """Keep samples that the constants explain, and fit them."""
    async with Redis.from_url(redis_url) as redis:
        samples, calibration_id = Samples(redis), uuid4()
        await samples.begin(POOL, calibration_id, 3.0)
        for hidden, layers in shapes:
            config = LlamaConfig(
                hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=4,
                num_key_value_heads=4, vocab_size=32_768, max_position_embeddings=1024,
            )  # fmt: skip
            for precision in precisions:
                taken = tuple(runs(facts_of(config), precision, layers, constants))
                await samples.keep_outcome(POOL, f"seeded|{hidden}|{precision}", Outcome(samples=taken, cost_s=1.0))
        await samples.end(POOL, calibration_id)
        assert await Refitting(samples, lambda: datetime.now(UTC)).fit(POOL) is not None


async def know(redis_url: str, source: str) -> None:
    """The profiler need not start the process that would read it."""
    async with Redis.from_url(redis_url) as redis:
        await KeptReadings(redis).keep(source, changed_ns(source), read(source))


def runs(facts: ModelFacts, precision: Precision, layers: int, constants: Mapping[str, float]) -> Iterator[RunSample]:
    rig = law.Rig("torch", precision, precision, 1, (1, 2, 4))
    for split in ((1,), (layers,), (layers - layers // 2, layers // 2)):
        for batch, tokens in ((1, 32), (1, 256), (2, 32), (4, 32)):
            shape = {"batch": batch, "num_layers": sum(split), "num_stages": len(split), "fullest": max(split)}
            prefill = law.prefill_terms(facts, rig, input_tokens=tokens, **shape).through(sum(split))
            decode = law.decode_terms(facts, rig, context_tokens=tokens + 4, **shape).through(sum(split))
            yield RunSample(
                facts=facts, precision=precision, kv_precision=precision, layers=split, batch=batch,
                input_tokens=tokens, output_tokens=8, prefill_ms=law.dot(constants, prefill),
                decode_ms=law.dot(constants, decode), runtime_bytes=0,
                activation_bytes=tokens * batch * facts.hidden_size * 40 if len(split) == 1 else None,
            )  # fmt: skip
