"""Served times and fingerprints as samples, and whether what is served keeps to what was predicted.

Pure: reports and calibrations in, samples and misses out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from math import hypot, log2, sqrt

from maveriq.contracts import (
    Calibration,
    Fingerprint,
    ModelFacts,
    PredictionMissed,
    RunSample,
    ServedTime,
    ServiceTimed,
    Value,
    others_error,
)
from maveriq.law import dot, uncovered
from maveriq_profiler.run_terms import terms_of

_MOST_PASSES = 1000  # that a kind's mean remembers, so that it follows a GPU that grows slower
_NINE_OF_TEN = 1.645  # standard deviations to either side


class Served(Value):
    """One kind of pass as served so far."""

    sample: RunSample
    count: int
    """Passes that its times are the mean of, at most _MOST_PASSES."""
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class Predicted:
    """A time and where it lies in nine cases of ten, in ms."""

    ms: float
    low: float
    high: float


def served(report: ServiceTimed, now: datetime) -> dict[str, Served]:
    """By kind: of each model, configuration, batch and half an octave of tokens there is one."""
    found: dict[str, Served] = {}
    for time in report.times:
        sample = _sample(report, time)
        kind = _kind(sample)
        new = Served(sample=sample, count=min(time.count, _MOST_PASSES), last_seen=now)
        found[kind] = mixed(found[kind], new) if kind in found else new
    return found


def mixed(known: Served, new: Served) -> Served:
    """Weighted by how many passes each speaks for."""
    count = known.count + new.count
    share = new.count / count
    old, latest = known.sample, new.sample
    changed: dict[str, object] = {
        "input_tokens": round(old.input_tokens * (1 - share) + latest.input_tokens * share),
        "output_tokens": round(old.output_tokens * (1 - share) + latest.output_tokens * share),
        "prefill_ms": _between(old.prefill_ms, latest.prefill_ms, share),
        "decode_ms": _between(old.decode_ms, latest.decode_ms, share),
    }
    return Served(
        sample=old.model_copy(update=changed), count=min(count, _MOST_PASSES),
        last_seen=max(known.last_seen, new.last_seen),
    )  # fmt: skip


def of_fingerprint(facts: ModelFacts, fingerprint: Fingerprint) -> tuple[RunSample, ...]:
    """Cut models tell about the GPU type as whole ones do."""
    return tuple(
        RunSample(
            facts=facts,
            precision=fingerprint.precision,
            kv_precision=fingerprint.kv_precision,
            layers=(one.num_layers,),
            batch=one.batch,
            input_tokens=one.input_tokens,
            output_tokens=one.output_tokens,
            prefill_ms=one.prefill_ms,
            decode_ms=one.decode_ms,
            prefill_spread=one.prefill_spread,
            decode_spread=one.decode_spread,
            others=one.others,
            activation_bytes=one.activation_bytes,
            runtime_bytes=one.runtime_bytes,
        )
        for one in fingerprint.samples
    )


def predicted(calibration: Calibration, sample: RunSample, *, decode: bool) -> Predicted | None:
    """What the law says of a run; None where the calibration may not speak of it.

    Its error is the constants' (by their covariance), what the law leaves unexplained where it was fitted, and what
    others disturbed.
    """
    tp, pp = sample.tp, len(sample.layers)
    tokens = sample.input_tokens + sample.output_tokens
    for precision in dict.fromkeys((sample.precision, *(each for each, _ in sample.mix))):
        if uncovered(calibration, sample.facts, precision, sample.kv_precision, tp=tp, pp=pp, context_tokens=tokens):
            return None
    terms = terms_of(sample, calibration.engine, calibration.scope.batches, "decode" if decode else "prefill")
    ms = float(dot({constant.name: constant.value for constant in calibration.latency}, terms))
    if ms <= 0:
        return None
    weights = [float(terms.get(constant.name, 0.0)) for constant in calibration.latency]
    error = _NINE_OF_TEN * sqrt(max(0.0, _variance(weights, calibration.covariance))) / ms
    wide = hypot(error, calibration.latency_residuals.p90, _NINE_OF_TEN * others_error(calibration.others))
    return Predicted(ms, ms * (1 - wide), ms * (1 + wide))


def miss(report: ServiceTimed, calibration: Calibration) -> PredictionMissed | None:
    """The kind that most passes of a report missed by; None where at least half of its passes are as predicted."""
    checked = missed = 0
    worst: tuple[float, PredictionMissed] | None = None
    for time, what, ms in _measured(report):
        expected = predicted(calibration, _sample(report, time), decode=what == "decode_ms")
        if expected is None:
            continue
        checked += time.count
        if expected.low <= ms <= expected.high:
            continue
        missed += time.count
        weight = time.count * abs(log2(ms / expected.ms))
        if worst is None or weight > worst[0]:
            worst = weight, PredictionMissed(
                deployment_id=report.deployment_id, engine=report.engine, gpu_type=report.gpu_types[0], what=what,
                batch=time.batch, measured_ms=ms, predicted_ms=expected.ms, interval_ms=(expected.low, expected.high),
            )  # fmt: skip
    return worst[1] if worst is not None and 2 * missed > checked else None


def _measured(report: ServiceTimed) -> Iterator[tuple[ServedTime, str, float]]:
    for time in report.times:
        if time.prefill_ms is not None:
            yield time, "prefill_ms", time.prefill_ms
        if time.decode_ms is not None:
            yield time, "decode_ms", time.decode_ms


def _sample(report: ServiceTimed, time: ServedTime) -> RunSample:
    """A sample's answer is whole, and its decode step that of half of it: an answer so far counts twice."""
    return RunSample(
        facts=report.facts,
        precision=report.precision,
        kv_precision=report.kv_precision,
        tp=report.tp,
        layers=report.layers,
        mix=report.mix,
        batch=time.batch,
        input_tokens=time.input_tokens,
        output_tokens=2 * time.output_tokens,
        prefill_ms=time.prefill_ms,
        decode_ms=time.decode_ms,
        served=True,
    )


def _kind(sample: RunSample) -> str:
    tokens = sample.input_tokens + sample.output_tokens / 2
    what = "prefill" if sample.decode_ms is None else "decode"
    layers = "+".join(str(number) for number in sample.layers)
    mix = "+".join(f"{count}x{precision}" for precision, count in sample.mix) or sample.precision
    parts = (
        sample.facts.shape_key, mix, sample.kv_precision, f"tp{sample.tp}", layers, what,
        f"b{sample.batch}", f"t{round(2 * log2(tokens))}",
    )  # fmt: skip
    return "|".join(parts)


def _variance(weights: list[float], triangle: tuple[tuple[float, ...], ...]) -> float:
    """Of a weighted sum: both halves of the covariance, of which the lower is given."""
    return sum(
        weights[i] * weights[j] * value * (1.0 if i == j else 2.0)
        for i, row in enumerate(triangle)
        for j, value in enumerate(row)
    )


def _between(old: float | None, new: float | None, share: float) -> float | None:
    if old is None or new is None:
        return new if old is None else old
    return old * (1 - share) + new * share
