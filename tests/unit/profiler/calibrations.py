"""Calibrations and reports of served times, small enough to reckon by hand."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from maveriq.contracts import Calibration, Constant, Precision, Residuals, Scope, ServedTime, ServiceTimed
from tests.unit.profiler.rigs import FACTS, rig

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DEPLOYMENT = UUID("00000000-0000-4000-8000-000000000001")


def calibration(gpu_type: str = "cpu-1t", *, p90: float = 0.1, **other: Any) -> Calibration:
    """A step takes 1 ms and 0.5 ms for each layer, whatever the batch and the lengths: 3 ms for FACTS' four layers."""
    here = rig(gpu_type)
    fields: dict[str, Any] = {
        "engine": here.engine,
        "engine_version": here.engine_version,
        "gpu_type": gpu_type,
        "max_pp": 8,
        "latency": (
            Constant(name="layer[full]", value=0.5, standard_error=0),
            Constant(name="step", value=1.0, standard_error=0),
        ),
        "covariance": ((0.0,), (0.0, 0.0)),
        "scope": Scope(
            num_models=2, num_samples=9,
            layer_params=(FACTS.layer_params, FACTS.layer_params), hidden_size=(64, 64), vocab_size=(256, 256),
            num_layers=(4, 4), precisions=(Precision.FP32,), kv_precisions=(Precision.FP32,), tp_degrees=(1,),
            pp_degrees=(1, 2), batches=(1, 8), max_input_tokens=512, max_context_tokens=512,
        ),
        "latency_residuals": Residuals(median=0.01, p90=p90, maximum=0.2),
        "fitted_at": NOW,
        "cost_s": 9.0,
    }  # fmt: skip
    return Calibration(**(fields | other))


def report(*times: ServedTime, node: str = "n1", gpu_types: tuple[str, ...] = ("cpu-1t",)) -> ServiceTimed:
    return ServiceTimed(
        deployment_id=DEPLOYMENT, node=node, engine="torch", gpu_types=gpu_types, facts=FACTS,
        precision=Precision.FP32, kv_precision=Precision.FP32, tp=1, layers=(4,), times=times or (decoded(3.0),),
    )  # fmt: skip


def decoded(ms: float, *, batch: int = 1, count: int = 10, input_tokens: int = 64) -> ServedTime:
    return ServedTime(batch=batch, input_tokens=input_tokens, output_tokens=8, decode_ms=ms, count=count)
