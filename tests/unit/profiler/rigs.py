"""A probe that measures nothing, and the readings that it gives."""

import asyncio
from dataclasses import dataclass, field

from maveriq.contracts import Fingerprint, ModelFacts, Precision, RunSample, Sample
from maveriq_profiler.formats import Format
from maveriq_profiler.grid import Point
from maveriq_profiler.measuring import ModelUnreadable, ProbeFailed, Rig
from maveriq_profiler.orders import Reading
from maveriq_profiler.programme import Item

FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    shape_key="0123456789abcdef",
    num_layers=4,
    hidden_size=64,
    intermediate_size=128,
    vocab_size=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_context_tokens=512,
    layer_params=36_992,
    embedding_params=16_384,
    lm_head_params=16_448,
    tied_embeddings=False,
)


def rig(gpu_type: str = "cpu-1t") -> Rig:
    return Rig(
        "torch", "2.13-r1", gpu_type, "cpu", 1, (Precision.FP32, Precision.BF16, Precision.INT8, Precision.INT4), 8
    )


def fingerprint(
    rig: Rig, precision: Precision = Precision.FP32, decode_ms: float = 2.0, kv_precision: Precision | None = None
) -> Fingerprint:
    shape = {"batch": 1, "input_tokens": 8, "output_tokens": 4, "activation_bytes": 1, "runtime_bytes": 0}
    return Fingerprint(
        engine=rig.engine,
        engine_version=rig.engine_version,
        gpu_type=rig.gpu_type,
        precision=precision,
        kv_precision=kv_precision or precision,
        tp_degrees=(1,),
        max_pp=rig.max_pp,
        hop_ms=0.1,
        samples=tuple(Sample(num_layers=n, prefill_ms=3.0 * n, decode_ms=decode_ms * n, **shape) for n in (1, 2)),
        cost_s=1.0,
    )


def run_sample(item: Item, split: tuple[int, ...], point: Point) -> RunSample:
    """Of an item of a programme; its model's shape is not looked at."""
    return RunSample(
        facts=FACTS.model_copy(update={"shape_key": item.key}),
        precision=item.precision,
        kv_precision=item.format.kv_precision,
        tp=item.tp,
        layers=split,
        batch=point.batch,
        input_tokens=point.input_tokens,
        output_tokens=item.output_tokens,
        prefill_ms=0.1 * sum(split) * point.batch * point.input_tokens,
        decode_ms=1.0 + sum(split) + 0.1 * point.batch + 0.2 * len(split),
        activation_bytes=1000,
        runtime_bytes=0,
    )


@dataclass
class FakeProbe:
    rig: Rig = field(default_factory=rig)
    unreadable: str = ""
    cannot_run: dict[str, str] = field(default_factory=dict[str, str])
    failure: str = ""
    measured: list[Precision] = field(default_factory=list[Precision])
    ran: list[str] = field(default_factory=list[str])

    async def read(self, source: str) -> Reading:
        if self.unreadable:
            raise ModelUnreadable(self.unreadable)
        return Reading(facts=FACTS, config_json="{}", cannot_run=self.cannot_run)

    async def measure(self, reading: Reading, wanted: Format) -> Fingerprint:
        if self.failure:
            raise ProbeFailed(self.failure)
        self.measured.append(wanted.precision)
        await asyncio.sleep(0)
        return fingerprint(self.rig, wanted.precision, kv_precision=wanted.kv_precision)

    async def run_item(self, item: Item, *, device: str) -> tuple[RunSample, ...]:
        if self.failure:
            raise ProbeFailed(self.failure)
        self.ran.append(item.key)
        await asyncio.sleep(0)
        return tuple(run_sample(item, split, point) for split in item.splits for point in item.points)
