"""Numbers as people read them. Pure: figures in, short text out."""

from maveriq.contracts import Configuration, Objective

MIB = 1024.0**2
GIB = 1024.0**3

SCORE_UNIT = {
    Objective.MIN_LATENCY: "ms",
    Objective.MIN_COST: "GB·s",
    Objective.MIN_MEMORY: "bytes",
    Objective.MIN_GPU_COST: "GPU·s",
}


def size(num_bytes: float) -> str:
    """1_610_612_736 -> 1.50 GiB."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / MIB:.0f} MiB"


def duration(ms: float) -> str:
    """Milliseconds with a sensible unit: 0.8 ms, 420 ms, 1.52 s."""
    if ms >= 10_000:
        return f"{ms / 1000:.1f} s"
    if ms >= 1_000:
        return f"{ms / 1000:.2f} s"
    return f"{ms:.0f} ms" if ms >= 20 else f"{ms:.1f} ms"


def amount(value: float) -> str:
    """Any positive number in four figures or so."""
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def shape(configuration: Configuration) -> str:
    """How one replica runs, e.g. `bf16 · 3 stages`."""
    parts = [str(configuration.precision)]
    if configuration.kv_precision != configuration.precision:
        parts.append(f"KV {configuration.kv_precision}")
    if configuration.tp > 1:
        parts.append(f"TP {configuration.tp}")
    parts.append("1 stage" if configuration.pp == 1 else f"{configuration.pp} stages")
    return " · ".join(parts)


def apart(predicted: float, measured: float) -> str:
    """How far a prediction was off, relative to what was measured: +4.2 %."""
    return f"{(predicted / measured - 1) * 100:+.1f} %"
