"""Fingerprints that a known law wrote, so that tests know what the planner has to find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from maveriq.contracts import (
    Admission,
    Fingerprint,
    FingerprintMeasured,
    Intent,
    Model,
    ModelFacts,
    Precision,
    Sample,
    Slo,
    Variant,
    Workload,
)

DEPLOYMENT = UUID("00000000-0000-4000-8000-000000000001")
FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    shape_key="smol",
    num_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    vocab_size=49152,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_context_tokens=8192,
    layer_params=3_540_096,
    embedding_params=49152 * 576,
    lm_head_params=49152 * 576 + 576,
    tied_embeddings=True,
)
MODEL = Model(
    name="smollm2",
    source="HuggingFaceTB/SmolLM2-135M-Instruct",
    variants=(
        Variant(precision=Precision.FP32, accuracy=1.0),
        Variant(precision=Precision.BF16, accuracy=0.99),
        Variant(precision=Precision.INT8, accuracy=0.97),
        Variant(precision=Precision.INT4),
    ),
)


@dataclass(frozen=True)
class Truth:
    """ms; decode as in latency.DecodeLaw with lines in b, prefill with GEMM and attention."""

    ends: float = 7.0
    ends_request: float = 0.8
    layer: float = 1.5
    layer_request: float = 0.12
    kv: float = 0.0001
    flop: float = 8e-8
    prompt: float = 3.0

    def decode(self, layers: int, batch: float, context: float) -> float:
        layer = self.layer + self.layer_request * batch + self.kv * batch * context
        return self.ends + self.ends_request * batch + layers * layer

    def prefill(self, layers: int, batch: int, tokens: int) -> float:
        flops = batch * tokens * (2 * FACTS.layer_params + 2 * tokens * FACTS.num_heads * FACTS.head_dim)
        return self.prompt + layers * self.flop * flops


def samples(
    truth: Truth = Truth(),
    *,
    layers: Sequence[int] = (2, 4),
    batches: Sequence[int] = (1, 2, 4, 8),
    shapes: Sequence[tuple[int, int]] = ((32, 16), (128, 16), (256, 16)),
    noise: Callable[[], float] = lambda: 1.0,
) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            num_layers=n,
            batch=b,
            input_tokens=tokens,
            output_tokens=output,
            prefill_ms=truth.prefill(n, b, tokens) * noise(),
            decode_ms=truth.decode(n, b, tokens + output / 2) * noise(),
            activation_bytes=100_000 + 20_000 * b * tokens,
            runtime_bytes=1_000_000,
        )
        for n in layers
        for b in batches
        for tokens, output in shapes
    )


def fingerprint(truth: Truth = Truth(), **changes: Any) -> Fingerprint:
    fields: dict[str, Any] = {
        "engine": "torch",
        "engine_version": "2.13",
        "gpu_type": "cpu-1t",
        "precision": Precision.FP32,
        "kv_precision": Precision.FP32,
        "tp_degrees": (1,),
        "max_pp": 30,
        "hop_ms": 0.25,
        "cost_s": 20.0,
    }
    return Fingerprint(**(fields | {"samples": samples(truth)} | changes))


def fingerprints() -> tuple[Fingerprint, ...]:
    """Four precisions, each faster and smaller than the one before."""
    int8 = {"precision": Precision.INT8, "kv_precision": Precision.BF16}
    int4 = {"precision": Precision.INT4, "kv_precision": Precision.BF16}
    return (
        fingerprint(),
        fingerprint(Truth(layer=1.2), precision=Precision.BF16, kv_precision=Precision.BF16),
        fingerprint(Truth(layer=1.0, prompt=4), **int8),
        fingerprint(Truth(layer=0.7, prompt=5), **int4),
    )


def intent(
    *,
    slo: Slo | None = None,
    input_tokens: int = 128,
    output_tokens: int = 64,
    rate: float = 0.2,
    context_tokens: int | None = None,
    **fields: Any,
) -> Intent:
    workload = Workload(
        input_tokens=input_tokens, output_tokens=output_tokens, request_rate_per_s=rate, context_tokens=context_tokens
    )
    return Intent(model=MODEL.name, slo=slo or Slo(), workload=workload, **fields)


def measured(wanted: Intent, *, dry_run: bool = False, **changes: Any) -> FingerprintMeasured:
    fields: dict[str, Any] = {"facts": FACTS, "fingerprints": fingerprints()}
    return FingerprintMeasured(
        deployment_id=DEPLOYMENT,
        admission=Admission(intent=wanted, model=MODEL, dry_run=dry_run),
        **(fields | changes),
    )
