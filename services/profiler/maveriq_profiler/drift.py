"""How many times as long served passes take as measured ones. Pure: samples and what a fit says of them in, ratios out.

A GPU type changes after it was measured (power, heat, neighbours), and an engine in service does more than a probe.
A fit would take the few served runs for outliers among the many measured ones. So what all served models agree in is
taken for the GPU type's and scales what was measured; what one misses by beyond that is the law's, left to the fit.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from maveriq.contracts import RunSample

_AGREED = 0.05  # of a median: less is within what the law misses of a model that it has not seen
TIMES = ("prefill_ms", "decode_ms")
Drifts = Mapping[str, float]
"""By the name of the time; 1: as measured."""
NONE: Drifts = dict.fromkeys(TIMES, 1.0)


def drifts(served: Sequence[RunSample], said_ms: Callable[[RunSample, str], float | None]) -> Drifts:
    """
    Args:
        said_ms: of a run, what a fit to measured runs alone predicts; None: nothing.
    """
    return {what: _common(_by_model(served, what, said_ms)) for what in TIMES}


def scaled(sample: RunSample, by: Drifts) -> RunSample:
    """A measured run as it would be measured now."""
    times = {what: getattr(sample, what) * by[what] for what in TIMES if getattr(sample, what) is not None}
    return sample.model_copy(update=times)


def _by_model(
    served: Sequence[RunSample], what: str, said_ms: Callable[[RunSample, str], float | None]
) -> dict[str, float]:
    """Of each served model the median over its kinds of pass."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for sample in served:
        took_ms: float | None = getattr(sample, what)
        expected_ms = said_ms(sample, what)
        if took_ms is not None and expected_ms:
            ratios[sample.facts.shape_key].append(took_ms / expected_ms)
    return {model: median(found) for model, found in ratios.items()}


def _common(ratios: Mapping[str, float]) -> float:
    """The ratio nearest to 1 where all lie on one side of it, clearly."""
    if ratios and min(ratios.values()) > 1 + _AGREED:
        return min(ratios.values())
    if ratios and max(ratios.values()) < 1 - _AGREED:
        return max(ratios.values())
    return 1.0
