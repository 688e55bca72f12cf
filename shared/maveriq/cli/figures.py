"""Numbers as people read them: significant digits, never a 0 that is none. Pure: figures in, short text out."""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from maveriq.contracts import BYTES_PER_ELEMENT, Candidate, Configuration, Objective, Precision

MIB = 1024.0**2
GIB = 1024.0**3

SCORE_UNIT = {
    Objective.MIN_LATENCY: "ms",
    Objective.MIN_COST: "GiB·s",
    Objective.MIN_MEMORY: "GiB",
    Objective.MIN_GPU_COST: "GPU·s",
    Objective.MIN_PRICE: "per hour",
    Objective.MAX_THROUGHPUT: "tokens/s",
}
"""Of `Candidate.score`, which is its negative where more is better."""


def size(num_bytes: float) -> str:
    """1_610_612_736 -> 1.50 GiB."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    if num_bytes >= MIB:
        return f"{num_bytes / MIB:.0f} MiB" if num_bytes >= 99.95 * MIB else f"{digits(num_bytes / MIB)} MiB"
    return f"{digits(num_bytes / 1024)} KiB" if num_bytes >= 1024 else f"{num_bytes:.0f} B"


def duration(ms: float) -> str:
    """Milliseconds with a sensible unit, in three digits: 0.00821 ms, 4.2 ms, 420 ms, 1.52 s."""
    if ms >= 10_000:
        return f"{ms / 1000:.1f} s"
    if ms >= 999.5:
        return f"{ms / 1000:.2f} s"
    return f"{digits(ms)} ms"


def amount(value: float) -> str:
    """Any number in four figures or so."""
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else digits(value)


def digits(value: float, significant: int = 3) -> str:
    """Rounded to so many, and never written with an exponent."""
    return f"{Decimal(f'{value:.{significant}g}'):f}"


def limit(constraint: str, value: float | None) -> str:
    """A value of an intent's field, with its unit. Four digits, for it stands beside another that it misses."""
    if value is None:
        return "not measured" if constraint == "min_accuracy" else "not known"
    if constraint.endswith("_ms"):
        return f"{digits(value, 4)} ms" if value < 9999.5 else f"{digits(value / 1000, 4)} s"
    if constraint.endswith("_per_hour"):
        return f"{digits(value, 4)} per hour"
    if constraint.endswith("_per_s"):
        return f"{digits(value, 4)} per s"
    return f"{value:,.0f}" if value >= 9999.5 else digits(value, 4)


def missed_by(wanted: float, predicted: float | None) -> str:
    """How far a prediction is from what was wanted: +6.7 %, 30 times; '' where there is none."""
    if predicted is None:
        return ""
    if predicted == wanted:
        return "equal"
    if wanted <= 0:
        return digits(predicted - wanted)
    if predicted >= 10 * wanted:
        return f"{predicted / wanted:,.0f} times"
    return f"{Decimal(f'{(predicted / wanted - 1) * 100:+.2g}'):+f} %"


def counted_shape(candidate: Candidate) -> str:
    """All replicas of a shape: `2 x bf16 · 3 stages`."""
    times = f"{candidate.replicas} x " if candidate.replicas > 1 else ""
    return f"{times}{runs_as(candidate)}"


def runs_as(candidate: Candidate) -> str:
    """One replica; with what the planner has split: `mixed · 14 x fp32 + 16 x int8 | 22+8 layers`."""
    c = candidate.configuration
    if not candidate.stages:
        return shape(c)
    parts = [c.variant, mix([precision for stage in candidate.stages for precision in stage.precisions])]
    if c.kv_precision != c.precision:
        parts.append(f"KV {c.kv_precision}")
    return f"{' · '.join(parts)} | {'+'.join(str(stage.num_layers) for stage in candidate.stages)} layers"


def mix(precisions: Sequence[Precision]) -> str:
    """How many layers have which precision, the widest first: `14 x fp32 + 16 x int8`."""
    counts = Counter(precisions)
    widest = sorted(counts, key=lambda precision: -BYTES_PER_ELEMENT[precision])
    return " + ".join(f"{counts[precision]} x {precision}" for precision in widest)


def gpus_of(candidate: Candidate) -> str:
    """Its GPU types: `NVIDIA A100`, or `NVIDIA A100 + NVIDIA L4` where stages are on several."""
    types = dict.fromkeys(stage.gpu_type for stage in candidate.stages)
    return " + ".join(types) or candidate.configuration.gpu_type


def shape(configuration: Configuration) -> str:
    """How one replica runs, e.g. `bf16 · 3 stages`."""
    parts = [str(configuration.precision)]
    kv_named = f"{configuration.precision}+kv-{configuration.kv_precision}"
    if configuration.variant not in ("", parts[0], kv_named):
        parts[0] = f"{configuration.variant} ({parts[0]})"
    if configuration.kv_precision != configuration.precision:
        parts.append(f"KV {configuration.kv_precision}")
    if configuration.tp > 1:
        parts.append(f"TP {configuration.tp}")
    parts.append("1 stage" if configuration.pp == 1 else f"{configuration.pp} stages")
    return " · ".join(parts)


def apart(predicted: float, measured: float) -> str:
    """How far a prediction was off, relative to what was measured: +4.2 %."""
    return f"{(predicted / measured - 1) * 100:+.1f} %"
