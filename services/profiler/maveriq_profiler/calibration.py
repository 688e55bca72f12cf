"""Samples of any models -> the constants of a GPU type's latency and memory law. Pure: samples in, calibration out."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import hypot

import numpy as np

from maveriq.contracts import (
    FULL_PRECISIONS,
    Calibration,
    Constant,
    Precision,
    Residuals,
    RunSample,
    Scope,
    others_error,
)
from maveriq.law import (
    Quantity,
    Rig,
    activation_terms,
    added,
    known_bytes,
    memory_terms,
    scaled,
)
from maveriq_profiler.drift import NONE, TIMES, Drifts, drifts
from maveriq_profiler.drift import scaled as scaled_by
from maveriq_profiler.merging import is_disturbed, merged, others_of
from maveriq_profiler.regression import Array, Fitted, fit_robust
from maveriq_profiler.run_terms import PASSES, terms_of

_GIB = 2**30
_NOISE = 0.01  # what the law leaves unexplained of a run; repeats differ by 0.2 to 0.4 % (RTX A6000, released data)
_JITTER_MS = {"prefill": 0.3, "decode": 0.02, "e2e": 1.0}  # what a clock and a host add, whatever the run takes
_RIDGE = 0.03  # a precision's deviation from the common constant must be worth a hundredth of its column
_APART_NOISE = 0.02  # of bytes that an allocator rounded
_LEAST_GIB = 1 / 16  # a miss of some MiB in a small pass is no share of a large one's
_QUIET = 0.1
_BALANCE = (1 / 3, 3.0)  # how far a group's weight is turned towards that of the others


class TooLittle(ValueError):
    """The samples do not carry a fit."""


@dataclass(frozen=True, slots=True)
class _Reading:
    terms: Mapping[str, Quantity]
    value: float
    deviation: float
    group: tuple[object, ...]
    """Runs that share what the law does not know of them: model, cut or whole, alone or in a batch."""


def fit(
    samples: Sequence[RunSample], *, engine: str, engine_version: str, gpu_type: str, max_pp: int,
    version: int, fitted_at: datetime, cost_s: float,
) -> Calibration:  # fmt: skip
    """All samples of one GPU type and engine version, pooled.

    Raises TooLittle: no sample has a time.
    """
    scope = scope_of([sample for sample in samples if not sample.mix] or samples)
    runs = merged(samples)
    drift = _drifts(runs, engine, scope.batches)
    timed = [sample if sample.served else scaled_by(sample, drift) for sample in runs]
    readings = [reading for sample in timed for reading in _times(sample, engine, scope.batches)]
    if not readings:
        raise TooLittle("no sample has a time")
    names, fitted, residuals = _fitted(readings)
    sizes = [reading for sample in runs for reading in _sizes(sample, engine)]
    memory_names, memory, memory_residuals = _fitted(sizes) if sizes else ((), None, None)
    active = [i for i, value in enumerate(fitted.constants) if value > 0]
    return Calibration(
        engine=engine,
        engine_version=engine_version,
        gpu_type=gpu_type,
        max_pp=max_pp,
        latency=_constants(names, fitted),
        covariance=tuple(tuple(float(fitted.covariance[i, j]) for j in active if j <= i) for i in active),
        memory=_constants(memory_names, memory) if memory else (),
        memory_margin=_margin(runs, engine, memory_names, memory) if memory else 0.0,
        scope=scope,
        latency_residuals=residuals,
        prefill_drift=drift["prefill_ms"],
        decode_drift=drift["decode_ms"],
        memory_residuals=memory_residuals,
        others=others_of(runs),
        num_disturbed=sum(is_disturbed(sample) for sample in runs),
        version=version,
        fitted_at=fitted_at,
        cost_s=cost_s,
    )


def _drifts(samples: Sequence[RunSample], engine: str, knots: tuple[int, ...]) -> Drifts:
    """Of what was served against a fit to what was measured; none where either is missing."""
    measured = [sample for sample in samples if not sample.served]
    served = [sample for sample in samples if sample.served and _was_measured(sample, measured)]
    readings = [reading for sample in measured for reading in _times(sample, engine, knots)]
    if not served or not readings:
        return NONE
    names, fitted, _ = _fitted(readings)

    def said_ms(sample: RunSample, what: str) -> float | None:
        alone = sample.model_copy(update={other: None for other in TIMES if other != what})
        found = _times(alone, engine, knots)
        return float((_matrix(found, names) @ fitted.constants)[0]) if found else None

    return drifts(served, said_ms)


def _was_measured(served: RunSample, measured: Sequence[RunSample]) -> bool:
    """Whether a fit to what was measured can speak of it: precision, TP and stages alike, and no larger batch."""
    if served.mix:
        return False

    def kind(sample: RunSample) -> tuple[object, ...]:
        return sample.precision, sample.kv_precision, sample.tp, len(sample.layers) > 1

    alike = [sample.batch for sample in measured if kind(sample) == kind(served)]
    return served.batch <= max(alike, default=0)


def scope_of(samples: Sequence[RunSample]) -> Scope:
    """Raises TooLittle: there are none."""
    if not samples:
        raise TooLittle("no samples")
    all_facts = [sample.facts for sample in samples]
    shapes: defaultdict[Precision, set[str]] = defaultdict(set)
    for sample in samples:
        shapes[sample.precision].add(sample.facts.shape_key)
    full = {(s.precision, s.kv_precision) for s in samples if s.kv_precision in FULL_PRECISIONS}
    return Scope(
        num_models=len({facts.shape_key for facts in all_facts}),
        num_samples=len(samples),
        layer_params=_spread(facts.layer_params for facts in all_facts),
        hidden_size=_spread(facts.hidden_size for facts in all_facts),
        vocab_size=_spread(facts.vocab_size for facts in all_facts),
        num_layers=_spread(sum(sample.layers) for sample in samples),
        mixtures=any(facts.num_experts for facts in all_facts),
        precisions=tuple(sorted(each for each in shapes if len(shapes[each]) >= _known_from(shapes.values()))),
        computed_in=tuple(sorted(pair for pair in full if pair[0] not in FULL_PRECISIONS)),
        kv_precisions=tuple(sorted({sample.kv_precision for sample in samples})),
        tp_degrees=tuple(sorted({sample.tp for sample in samples})),
        pp_degrees=tuple(sorted({len(sample.layers) for sample in samples})),
        batches=_knots(samples),
        max_input_tokens=max(sample.input_tokens for sample in samples),
        max_context_tokens=max(sample.input_tokens + sample.output_tokens for sample in samples),
    )


def _known_from(models: Iterable[set[str]]) -> int:
    """Models of a precision that make it known: of one alone nobody knows what its size does, if others are there."""
    return min(2, len(set[str]().union(*models)))


def _spread(values: Iterable[int]) -> tuple[int, int]:
    known = list(values)
    return min(known), max(known)


def _knots(samples: Sequence[RunSample]) -> tuple[int, ...]:
    """Measured batches; where requests were served at any batch, the powers of two among those."""
    timed = [sample for sample in samples if sample.decode_ms or sample.e2e_ms]
    measured = {sample.batch for sample in timed if not sample.served}
    largest = max((sample.batch for sample in timed), default=1)
    doubling = {2**i for i in range(largest.bit_length())} if largest > max(measured, default=0) else set[int]()
    return tuple(sorted(measured | {batch for batch in doubling if batch > max(measured, default=0)} | {1}))


def _times(sample: RunSample, engine: str, knots: tuple[int, ...]) -> list[_Reading]:
    prefill, decode = (terms_of(sample, engine, knots, what) for what in PASSES)
    timed = [("prefill", prefill, sample.prefill_ms), ("decode", decode, sample.decode_ms)]
    if sample.prefill_ms is None and sample.decode_ms is None:
        timed = [("e2e", added(prefill, scaled(decode, sample.output_tokens - 1)), sample.e2e_ms)]
    return [
        _Reading(terms, value, _deviation_ms(sample, what, value), (what, *_group(sample)))
        for what, terms, value in timed
        if value is not None
    ]


def _deviation_ms(sample: RunSample, what: str, value: float) -> float:
    spread = {"prefill": sample.prefill_spread, "decode": sample.decode_spread}.get(what) or 0.0
    return hypot(_JITTER_MS[what], value * hypot(_NOISE, spread, others_error(sample.others or 0.0)))


def _group(sample: RunSample) -> tuple[object, ...]:
    return sample.facts.shape_key, sum(sample.layers) < sample.facts.num_layers, sample.batch > 1, sample.served


def _sizes(sample: RunSample, engine: str) -> list[_Reading]:
    rig = Rig(engine, sample.precision, sample.kv_precision, sample.tp, (1,))
    num_stages, group = len(sample.layers), _group(sample)
    tokens = sample.room_tokens or sample.batch * sample.input_tokens
    if sample.memory_bytes is not None:
        terms = memory_terms(sample.facts, rig, num_layers=sum(sample.layers), num_stages=num_stages, tokens=tokens)
        whole = sample.memory_bytes / _GIB
        return [_Reading(terms, whole - _known(sample, rig), _NOISE * whole, group)]
    found: list[_Reading] = []
    if sample.activation_bytes is not None:
        terms = activation_terms(sample.facts, rig, num_stages=num_stages, tokens=tokens)
        found.append(_sized(terms, sample.activation_bytes / _GIB, group))
    if sample.runtime_bytes is not None:
        whole = sample.runtime_bytes / _GIB * sample.tp * num_stages
        found.append(_sized({f"runtime.tp{sample.tp}.pp{num_stages}": 1.0}, whole, group))
    return found


def _sized(terms: Mapping[str, Quantity], value: float, group: tuple[object, ...]) -> _Reading:
    return _Reading(terms, value, _APART_NOISE * value + 1 / 1024, group)


def _known(sample: RunSample, rig: Rig) -> float:
    cached = sample.batch * (sample.input_tokens + sample.output_tokens)
    return float(known_bytes(sample.facts, rig, num_layers=sum(sample.layers), cached_tokens=cached)) / _GIB


def _fitted(readings: Sequence[_Reading]) -> tuple[tuple[str, ...], Fitted, Residuals]:
    names = tuple(sorted({name for reading in readings for name, value in reading.terms.items() if value}))
    rows = _matrix(readings, names)
    values = np.array([reading.value for reading in readings])
    deviations = np.array([reading.deviation for reading in readings]) * _balance(readings)
    ridge = [_RIDGE if name.endswith("]") and name.split("[")[0] in names else 0.0 for name in names]
    fitted = fit_robust(rows, values, deviations, ridge, quiet=_QUIET)
    misses = np.abs(rows @ fitted.constants - values) / np.maximum(np.abs(values), 1e-9)
    return names, fitted, Residuals(
        median=float(np.median(misses)), p90=float(np.quantile(misses, 0.9)), maximum=float(misses.max())
    )  # fmt: skip


def _balance(readings: Sequence[_Reading]) -> Array:
    """What the law misses of a group is the same in all its runs: a group of hundreds counts little more than one."""
    sizes = Counter(reading.group for reading in readings)
    ratio = np.array([sizes[reading.group] for reading in readings]) * len(sizes) / len(readings)
    return np.clip(np.sqrt(ratio), *_BALANCE)


def _matrix(readings: Sequence[_Reading], names: Sequence[str]) -> Array:
    return np.array([[float(reading.terms.get(name, 0.0)) for name in names] for reading in readings])


def _constants(names: Sequence[str], fitted: Fitted) -> tuple[Constant, ...]:
    """Without those that are 0, but for a runtime's: on a CPU it is 0, which is not the same as not measured."""
    errors = np.sqrt(np.diag(fitted.covariance))
    return tuple(
        Constant(name=name, value=float(value), standard_error=float(error))
        for name, value, error in zip(names, fitted.constants, errors, strict=True)
        if value > 0 or name.startswith("runtime.")
    )


def _margin(samples: Sequence[RunSample], engine: str, names: Sequence[str], fitted: Fitted) -> float:
    """Largest share by which a sample's runtime and activations were predicted too small; the rest is counted."""
    worst = 0.0
    for sample in samples:
        for reading in _sizes(sample, engine):
            found = float((_matrix([reading], names) @ fitted.constants)[0])
            worst = max(worst, (reading.value - found) / max(found, _LEAST_GIB))
    return worst
