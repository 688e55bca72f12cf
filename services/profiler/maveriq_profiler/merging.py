"""One sample for each run that was repeated. Pure: samples in, their middles out."""

from collections.abc import Sequence
from statistics import median

from maveriq.contracts import QUIET_SHARE, RunSample

_MEASURED = (
    "prefill_ms", "decode_ms", "e2e_ms", "memory_bytes", "activation_bytes", "runtime_bytes", "prefill_spread",
    "decode_spread", "others",
)  # fmt: skip


def merged(samples: Sequence[RunSample]) -> list[RunSample]:
    """Medians; of those that nobody disturbed, where there are such."""
    alike: dict[str, list[RunSample]] = {}
    for sample in samples:
        key = sample.model_dump_json(exclude={"facts", *_MEASURED})
        alike.setdefault(f"{sample.facts.shape_key}{key}", []).append(sample)
    return [_median_of([one for one in group if not is_disturbed(one)] or group) for group in alike.values()]


def is_disturbed(sample: RunSample) -> bool:
    return (sample.others or 0.0) > QUIET_SHARE


def others_of(samples: Sequence[RunSample]) -> float:
    """Share of the device that others took while the middle one was measured; a fit leaves aside those beyond it."""
    return median([sample.others or 0.0 for sample in samples if not sample.served] or [0.0])


def _median_of(group: Sequence[RunSample]) -> RunSample:
    if len(group) == 1:
        return group[0]
    medians: dict[str, float | int | None] = {}
    for name in _MEASURED:
        values = [value for sample in group if (value := getattr(sample, name)) is not None]
        middle = median(values) if values else None
        medians[name] = int(middle) if middle is not None and name.endswith("_bytes") else middle
    return group[0].model_copy(update=medians)
