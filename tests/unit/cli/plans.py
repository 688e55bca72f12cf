"""A hand-made plan with everything that a plan may say."""

from pathlib import Path

from maveriq.contracts import (
    Basis,
    Candidate,
    Intent,
    Interval,
    Plan,
    PlannedStage,
    Precision,
    Prediction,
    Rejection,
    Slo,
    Workload,
)
from tests.unit.cli.records import candidate, configuration, plan

GIB = 2**30
ASKED = Intent(
    model="llama", slo=Slo(ttft_ms=100, e2e_ms=5000, percentile=95), min_accuracy=0.98, max_price_per_hour=2,
    gpu_types=("NVIDIA L4", "NVIDIA A10"), workload=Workload(request_rate_per_s=2, concurrency=32),
)  # fmt: skip


def around(value: float, share: float) -> Interval:
    return Interval(low=value * (1 - share), high=value * (1 + share))


def able(
    precision: Precision, e2e_ms: float, memory_bytes: int, score: float, *, pp: int = 1, batch: int = 4,
    replicas: int = 1, gpu_type: str = "NVIDIA L4", price: float | None = 0.8, accuracy: float | None = 1.0,
) -> Candidate:  # fmt: skip
    prediction = Prediction(
        ttft_ms=e2e_ms / 20, tpot_ms=e2e_ms / 130, e2e_ms=e2e_ms, throughput_tokens_per_s=80, gpu_s=e2e_ms / 1e3 * pp,
        memory_bytes=memory_bytes, accuracy=accuracy, price_per_hour=price, goodput_tokens_per_s=70,
        ttft_percentile_ms=e2e_ms / 12, tpot_percentile_ms=e2e_ms / 120, e2e_percentile_ms=e2e_ms * 1.4,
        e2e_interval_ms=around(e2e_ms, 0.04), ttft_interval_ms=around(e2e_ms / 20, 0.05),
        memory_interval_bytes=around(memory_bytes, 0.02), basis=Basis.CALIBRATION,
    )  # fmt: skip
    shape = configuration(precision, pp).model_copy(update={"gpu_type": gpu_type, "max_batch": batch})
    return Candidate(
        configuration=shape, prediction=prediction, memory=candidate().memory, score=score, replicas=replicas
    )


FP8 = able(Precision.FP8, 2100, 9 * GIB, 18.1, accuracy=0.99)
SAME_SHAPE = able(Precision.FP8, 2120, 10 * GIB, 18.9, accuracy=0.99, batch=8)
INT4 = able(Precision.INT4, 1900, 5 * GIB, 19.4, accuracy=0.981, replicas=2)
ELSEWHERE = able(Precision.BF16, 4100, 17 * GIB, 30, gpu_type="NVIDIA A10", price=None)
MIXED_STAGES = (
    PlannedStage(
        gpu_type="NVIDIA L4", precisions=(Precision.BF16,) * 14 + (Precision.INT8,) * 8, reserved_bytes=7 * GIB
    ),
    PlannedStage(gpu_type="NVIDIA A10", precisions=(Precision.INT8,) * 8, reserved_bytes=3 * GIB),
)


def mixed() -> Candidate:
    """As the planner splits: 30 layers on two GPU types."""
    found = able(Precision.BF16, 2000, 10 * GIB, 18.0, pp=2, accuracy=0.985)
    shape = found.configuration.model_copy(update={"variant": "mixed"})
    return found.model_copy(update={"configuration": shape, "stages": MIXED_STAGES})


def missed(by: Candidate, constraint: str, wanted: float, predicted: float | None) -> Rejection:
    return Rejection(
        configuration=by.configuration, prediction=by.prediction, constraint=constraint, wanted=wanted,
        predicted=predicted,
    )  # fmt: skip


FULL = Plan(
    facts=plan().facts,
    candidates=(FP8, SAME_SHAPE, INT4, ELSEWHERE),
    front=(FP8, INT4),
    rejected=(
        missed(SAME_SHAPE, "slo.ttft_ms", 100, 100.3),
        missed(INT4, "min_accuracy", 0.98, 0.97),
        missed(FP8, "slo.ttft_ms", 100, 3000),
        missed(ELSEWHERE, "min_accuracy", 0.98, None),
    ),
    num_considered=120,
)

PICTURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
"""How a file of each kind begins."""


def begins_as_it_should(path: Path) -> bool:
    return path.read_bytes().startswith(PICTURES[path.suffix])
