"""Fingerprints that a known law wrote, so that tests know what the planner has to find."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from maveriq.contracts import (
    Admission,
    Calibration,
    Constant,
    Fingerprint,
    FingerprintMeasured,
    Intent,
    Model,
    ModelFacts,
    Precision,
    Residuals,
    Sample,
    Scope,
    Slo,
    Variant,
    Workload,
)
from maveriq_planner.space import Space, by_law

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


BIG = ModelFacts(
    architecture="LlamaForCausalLM", shape_key="big", num_layers=32, hidden_size=4096, intermediate_size=14336,
    vocab_size=128256, num_heads=32, num_kv_heads=8, head_dim=128, max_context_tokens=131072,
    layer_params=218_112_000, embedding_params=128256 * 4096, lm_head_params=128256 * 4096 + 4096,
    tied_embeddings=False,
)  # fmt: skip
BIG_MODEL = Model(
    name="llama-8b",
    source="meta-llama/Llama-3.1-8B-Instruct",
    variants=(
        Variant(precision=Precision.FP16, accuracy=1.0),
        Variant(precision=Precision.FP8, kv_precision=Precision.FP8, accuracy=0.99),
        Variant(precision=Precision.INT8, accuracy=0.98),
        Variant(precision=Precision.INT4),
    ),
)
# Of the order of what MaverIQ's released data say of an RTX A6000: ms per GB, per TFLOP or per piece.
CONSTANTS = {
    "layer[full]": 0.094, "layer[quantised]": 0.074, "weights": 1.45, "cache": 1.195, "step": 0.3, "head": 1.45,
    "requests": 0.01, "idle.tp1": 0.04, "hop.tp1": 0.02, "hop.tp2": 0.2, "hop.tp4": 0.4, "hop.bytes.tp1": 40.0,
    "step.tp2": 0.1, "step.tp4": 0.2, "rows@8": 5.0, "rows@64": 9.0, "rows@64[fp16]": 3.0, "compute": 8.5,
    "prompt_layer[full]": 0.05, "prompt_layer[quantised]": 0.05, "prompt_activations": 3.0, "prompt": 1.0,
    "prompt.tp2": 3.7, "prompt.tp4": 14.4, "prompt_hop.tp1": 20.0, "prompt_hop.tp2": 20.0, "prompt_hop.tp4": 20.0,
    "reduce.one_shot.tp2": 37.0, "reduce.one_shot.tp4": 1813.0, "reduce.two_shot.tp4": 526.0, "reduce.ring.tp2": 41.0,
    "reduce.ring.tp4": 37.0,
}  # fmt: skip


def calibration(*, slower: float = 1.0, error: float = 0.01, **changes: Any) -> Calibration:
    """Every constant known to a share of `error`, each apart from the others."""
    latency = tuple(
        Constant(name=name, value=value * slower, standard_error=value * slower * error)
        for name, value in CONSTANTS.items()
    )
    covariance = tuple(
        tuple(latency[i].standard_error ** 2 if i == j else 0.0 for j in range(i + 1)) for i in range(len(latency))
    )
    scope = Scope(
        num_models=6, num_samples=400, layer_params=(10_000_000, 500_000_000), hidden_size=(1024, 8192),
        vocab_size=(32000, 128256), num_layers=(2, 40),
        precisions=(Precision.FP16, Precision.FP8, Precision.INT8, Precision.INT4),
        kv_precisions=(Precision.FP16, Precision.FP8), tp_degrees=(1, 2, 4), pp_degrees=(1, 2, 4),
        batches=(1, 8, 64), max_input_tokens=2048, max_context_tokens=4096,
    )  # fmt: skip
    memory = {"runtime.tp1.pp1": 0.6, "runtime.tp2.pp1": 1.8, "activation.hidden": 4.0, "activation.wide": 2.0}
    fields: dict[str, Any] = {
        "engine": "trtllm", "engine_version": "0.9", "gpu_type": "NVIDIA RTX A6000", "max_pp": 8, "latency": latency,
        "covariance": covariance,
        "memory": tuple(Constant(name=n, value=v, standard_error=0.01 * v) for n, v in memory.items()),
        "memory_margin": 0.02, "scope": scope,
        "latency_residuals": Residuals(median=0.005, p90=0.015, maximum=0.1),
        "memory_residuals": Residuals(median=0.004, p90=0.01, maximum=0.03),
        "fitted_at": datetime(2026, 11, 21, tzinfo=UTC), "cost_s": 900.0,
    }  # fmt: skip
    return Calibration(**(fields | changes))


def space_of(
    prints: Iterable[Fingerprint] | None = None,
    calibrations: Iterable[Calibration] = (),
    *,
    model: Model = MODEL,
    facts: ModelFacts = FACTS,
    max_pp: int = 4,
    prices: Mapping[str, float] | None = None,
) -> Space:
    known = fingerprints() if prints is None else tuple(prints)
    estimators, silent = by_law(model, facts, known, tuple(calibrations))
    return Space(model, facts, estimators, max_pp, prices or {}, silent)


def intent(
    *,
    slo: Slo | None = None,
    input_tokens: int = 128,
    output_tokens: int = 64,
    rate: float = 0.2,
    context_tokens: int | None = None,
    concurrency: int | None = None,
    **fields: Any,
) -> Intent:
    workload = Workload(
        input_tokens=input_tokens, output_tokens=output_tokens, request_rate_per_s=rate,
        context_tokens=context_tokens, concurrency=concurrency,
    )  # fmt: skip
    return Intent(model=MODEL.name, slo=slo or Slo(), workload=workload, **fields)


def measured(wanted: Intent, *, dry_run: bool = False, **changes: Any) -> FingerprintMeasured:
    fields: dict[str, Any] = {
        "facts": FACTS,
        "fingerprints": fingerprints(),
        "admission": Admission(intent=wanted, model=MODEL, dry_run=dry_run),
    }
    return FingerprintMeasured(deployment_id=DEPLOYMENT, **(fields | changes))
