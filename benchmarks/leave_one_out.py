"""What our law and MaverIQ's method say of each model when all that they learn from is other models' measurements."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import sqrt

from released_runs import GIB, Row, gpu_seconds

from maveriq import law
from maveriq.contracts import Calibration, RunSample
from maveriq_planner.maveriq_method import (
    START,
    Exponents,
    MaveriqModel,
    Unmeasured,
    fit_exponents,
    fit_maveriq,
)  # fmt: skip
from maveriq_profiler import calibration

FULL = "full_model"


@dataclass(frozen=True, slots=True)
class Guess:
    """Of one measured run; None: the method does not say."""

    row: Row
    latency_ms: float | None
    memory_gib: float | None
    error_ms: float | None = None
    """One standard deviation, where the method has intervals."""


def models_of(rows: Sequence[Row]) -> list[str]:
    return sorted({row.model for row in rows if row.table == FULL})


def by_law(rows: Sequence[Row], target: str) -> Iterator[Guess]:
    """All rows of models of another shape; nothing is measured of the target's."""
    shape = _shape(rows, target)
    others = [row for row in rows if row.sample.facts.shape_key != shape]
    fitted = calibrated(others)
    latency, memory = ({c.name: c.value for c in constants} for constants in (fitted.latency, fitted.memory))
    for row in rows:
        if row.model == target and not _is_outside(row.sample, fitted):
            terms = request_terms(row.sample, fitted)
            latency_ms = float(law.dot(latency, terms))
            yield Guess(row, latency_ms, _memory_gib(row.sample, memory), error_ms(latency_ms, terms, fitted))
        elif row.model == target:
            yield Guess(row, None, None)


def _is_outside(sample: RunSample, fitted: Calibration) -> bool:
    """Nothing is known of its TP degree, or of pipelines: the planner offers no such configuration."""
    return sample.tp not in fitted.scope.tp_degrees or (len(sample.layers) > 1 and max(fitted.scope.pp_degrees) == 1)


def calibrated(rows: Sequence[Row]) -> Calibration:
    return calibration.fit(
        [row.sample for row in rows], engine="tensorrt-llm", engine_version="0.9", gpu_type="RTX A6000", max_pp=8,
        version=1, fitted_at=datetime.now(UTC), cost_s=gpu_seconds(rows),
    )  # fmt: skip


def request_terms(sample: RunSample, fitted: Calibration) -> law.Terms:
    rig = law.Rig(fitted.engine, sample.precision, sample.kv_precision, sample.tp, fitted.scope.batches)
    num_layers, num_stages, fullest = sum(sample.layers), len(sample.layers), max(sample.layers)
    prefill = law.prefill_terms(
        sample.facts, rig, batch=sample.batch, input_tokens=sample.input_tokens,
        num_layers=num_layers, num_stages=num_stages, fullest=fullest,
    )  # fmt: skip
    step = law.decode_terms(
        sample.facts, rig, batch=sample.batch, context_tokens=sample.input_tokens + sample.output_tokens / 2,
        num_layers=num_layers, num_stages=num_stages, fullest=fullest,
    )  # fmt: skip
    return law.added(prefill.through(num_layers), law.scaled(step.through(num_layers), sample.output_tokens - 1))


def _memory_gib(sample: RunSample, constants: dict[str, float]) -> float:
    rig = law.Rig("", sample.precision, sample.kv_precision, sample.tp, (1,))
    cached = sample.batch * (sample.input_tokens + sample.output_tokens)
    known = law.known_bytes(sample.facts, rig, num_layers=sum(sample.layers), cached_tokens=cached)
    tokens = sample.room_tokens or sample.batch * sample.input_tokens
    terms = law.memory_terms(
        sample.facts, rig, num_layers=sum(sample.layers), num_stages=len(sample.layers), tokens=tokens
    )  # fmt: skip
    return float(known / GIB + law.dot(_with_runtime(constants, sample), terms))


def _with_runtime(constants: dict[str, float], sample: RunSample) -> dict[str, float]:
    """Of degrees that were never seen together: the most that any GPU took at others, as the planner has it."""
    name = f"runtime.tp{sample.tp}.pp{len(sample.layers)}"
    if name in constants:
        return constants
    each = [
        value / (int(tp) * int(pp))
        for known, value in constants.items()
        if known.startswith("runtime.tp")
        for tp, pp in [known.removeprefix("runtime.tp").split(".pp")]
    ]
    return constants | {name: max(each, default=0.0) * sample.tp * len(sample.layers)}


def error_ms(latency_ms: float, terms: law.Terms, fitted: Calibration) -> float:
    """x' C x, and the residual of the fit."""
    x = [float(terms.get(constant.name, 0.0)) for constant in fitted.latency]
    variance = sum(
        (1 if i == j else 2) * x[i] * x[j] * value
        for i, row in enumerate(fitted.covariance)
        for j, value in enumerate(row)
    )
    residual = max(1.4826 * fitted.latency_residuals.median, fitted.latency_residuals.p90 / 1.645)
    return sqrt(max(0.0, variance) + (residual * latency_ms) ** 2)


def by_maveriq(rows: Sequence[Row], target: str) -> Iterator[Guess]:
    """The target's own fingerprints, and exponents from the whole models of other shapes."""
    shape = _shape(rows, target)
    exponents = _exponents([row for row in rows if row.sample.facts.shape_key != shape])
    alone, batched = (_fingerprint(rows, target, table) for table in ("fingerprint", "fingerprint_batch"))
    for row in rows:
        if row.model == target:
            model = alone if row.sample.input_tokens == _prompt(alone) else batched
            yield _guess(row, model, exponents)


def _prompt(model: MaveriqModel) -> int | None:
    return model.samples[0].input_tokens if model.samples else None


def _guess(row: Row, model: MaveriqModel, exponents: Mapping[object, Exponents]) -> Guess:
    sample = row.sample
    kind, tp, pp = (sample.precision, sample.kv_precision), sample.tp, len(sample.layers)
    by = exponents.get(kind, exponents.get(_ANY, START))
    try:
        latency_ms = model.latency_ms(
            tp, pp, kind, output_tokens=sample.output_tokens, batch=sample.batch, by=by
        )  # fmt: skip
        return Guess(row, latency_ms, model.memory_gib(tp, pp, kind, batch=sample.batch))
    except Unmeasured:
        return Guess(row, None, None)


_ANY = ("any", "any")


def _exponents(others: Sequence[Row]) -> dict[object, Exponents]:
    """Of each pair of formats; of all together for a pair that no other model was measured with."""
    known: dict[object, list[tuple[MaveriqModel, RunSample]]] = {}
    fingerprints = {model: _fingerprint(others, model, "fingerprint") for model in models_of(others)}
    for row in others:
        if row.table == FULL and fingerprints[row.model].samples:
            kind = (row.sample.precision, row.sample.kv_precision)
            for key in (kind, _ANY):
                known.setdefault(key, []).append((fingerprints[row.model], row.sample))
    return {kind: fit_exponents(runs) for kind, runs in known.items()}


def _fingerprint(rows: Sequence[Row], model: str, table: str) -> MaveriqModel:
    mine = [row.sample for row in rows if row.model == model and row.table == table]
    return fit_maveriq(next(row.sample.facts for row in rows if row.model == model), mine)


def _shape(rows: Sequence[Row], model: str) -> str:
    return next(row.sample.facts.shape_key for row in rows if row.model == model)
