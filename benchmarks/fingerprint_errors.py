"""How far `fingerprint_cpu.py`'s predictions are off, and how much of it is noise. Pure: rows of its report in."""

from collections.abc import Iterable, Sequence
from statistics import mean, median, stdev
from typing import Any


def spread(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Of absolute errors, in percent; `bias` is their mean with signs."""
    signed = [100 * row["error"] for row in rows]
    errors = sorted(map(abs, signed))
    if not errors:
        return {"n": 0}
    p90 = errors[min(len(errors) - 1, round(0.9 * (len(errors) - 1)))]
    return {
        "median": round(median(errors), 2),
        "p90": round(p90, 2),
        "max": round(errors[-1], 2),
        "bias": round(mean(signed), 2),
        "n": len(errors),
    }


def deviation(values: Sequence[float]) -> float:
    """Standard; of one value nothing is known, which counts as 0."""
    return stdev(values) if len(values) > 1 else 0.0


def made_by_noise(rows: Sequence[dict[str, Any]], rounds: int) -> float:
    """Share of the squared errors that the truth's own rounds explain: what a perfect prediction would miss too."""
    errors = sum(row["error"] ** 2 for row in rows)
    return round(sum(row["deviation"] ** 2 / rounds for row in rows) / errors, 3) if errors else 0.0
