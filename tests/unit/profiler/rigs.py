"""A probe that measures nothing, and the readings that it gives."""

import asyncio
from dataclasses import dataclass, field

from maveriq.contracts import Fingerprint, ModelFacts, Precision, Sample
from maveriq_profiler.measuring import ModelUnreadable, ProbeFailed, Rig
from maveriq_profiler.orders import Reading

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
    return Rig("torch", "2.13-r1", gpu_type, "cpu", 1, (Precision.FP32, Precision.BF16), 8)


def fingerprint(rig: Rig, precision: Precision = Precision.FP32, decode_ms: float = 2.0) -> Fingerprint:
    shape = {"batch": 1, "input_tokens": 8, "output_tokens": 4, "activation_bytes": 1, "runtime_bytes": 0}
    return Fingerprint(
        engine=rig.engine,
        engine_version=rig.engine_version,
        gpu_type=rig.gpu_type,
        precision=precision,
        kv_precision=precision,
        tp_degrees=(1,),
        max_pp=rig.max_pp,
        hop_ms=0.1,
        samples=tuple(Sample(num_layers=n, prefill_ms=3.0 * n, decode_ms=decode_ms * n, **shape) for n in (1, 2)),
        cost_s=1.0,
    )


@dataclass
class FakeProbe:
    rig: Rig = field(default_factory=rig)
    unreadable: str = ""
    failure: str = ""
    measured: list[Precision] = field(default_factory=list)

    async def read(self, source: str) -> Reading:
        if self.unreadable:
            raise ModelUnreadable(self.unreadable)
        return Reading(facts=FACTS, config_json="{}")

    async def measure(self, reading: Reading, precision: Precision) -> Fingerprint:
        if self.failure:
            raise ProbeFailed(self.failure)
        self.measured.append(precision)
        await asyncio.sleep(0)
        return fingerprint(self.rig, precision)
