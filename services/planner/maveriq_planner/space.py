"""What speaks for a model on each kind of GPU. Pure: what was measured in, estimators and why others are silent out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from maveriq import law
from maveriq.contracts import FULL_PRECISIONS, Calibration, Fingerprint, Model, ModelFacts, Precision, Variant
from maveriq_planner.estimate import Estimator, Kind
from maveriq_planner.estimators.calibrated import CalibratedLaw, Tables, constants_of
from maveriq_planner.estimators.sampled import sampled


@dataclass(frozen=True, slots=True)
class Space:
    """Everything that the model could run as."""

    model: Model
    facts: ModelFacts
    estimators: tuple[Estimator, ...]
    max_pp: int
    prices: Mapping[str, float] = field(default_factory=dict[str, float])
    """Money an hour of one GPU, by type."""
    silent: tuple[str, ...] = ()
    """Why a GPU type or variant cannot be predicted, one sentence each."""

    def price_of(self, gpu_type: str) -> float | None:
        return self.prices.get(gpu_type)

    @property
    def gpu_types(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(estimator.kind.gpu_type for estimator in self.estimators))

    @property
    def precisions(self) -> tuple[Precision, ...]:
        return tuple(dict.fromkeys(estimator.kind.precision for estimator in self.estimators))


class Sources(Protocol):
    """Chooses what speaks: MAVERIQ_ESTIMATOR."""

    def __call__(
        self,
        model: Model,
        facts: ModelFacts,
        fingerprints: Sequence[Fingerprint],
        calibrations: Sequence[Calibration],
        named: Sequence[str],
        context_tokens: int,
    ) -> tuple[tuple[Estimator, ...], tuple[str, ...]]:
        """
        Args:
            named: GPU types that the intent or the prices speak of, measured or not.
            context_tokens: prompt and answer of the mean request.
        """
        ...


def by_law(
    model: Model,
    facts: ModelFacts,
    fingerprints: Sequence[Fingerprint],
    calibrations: Sequence[Calibration],
    named: Sequence[str] = (),
    context_tokens: int = 0,
) -> tuple[tuple[Estimator, ...], tuple[str, ...]]:
    """A GPU type's calibration where it covers the variant, else the model's own fingerprint."""
    tables = Tables()
    found: list[Estimator] = []
    silent: list[str] = []
    for engine, gpu_type in _places(fingerprints, calibrations):
        calibration = next((c for c in calibrations if (c.engine, c.gpu_type) == (engine, gpu_type)), None)
        constants = constants_of(calibration) if calibration is not None else None
        own = [f for f in fingerprints if (f.engine, f.gpu_type) == (engine, gpu_type)]
        for variant in model.variants:
            reason = "nothing was measured"
            if calibration is not None and constants is not None:
                kv_precision = cache_among(variant, calibration.scope.kv_precisions)
                reason = _against(calibration, facts, variant, kv_precision, context_tokens)
                if not reason:
                    kind = Kind(engine, gpu_type, variant.precision, kv_precision, variant)
                    found.append(CalibratedLaw(kind, facts, calibration, constants, tables))
                    continue
            fingerprint = measured_as(variant, own)
            if fingerprint is not None:
                kind = Kind(engine, gpu_type, variant.precision, fingerprint.kv_precision, variant)
                found.append(sampled(kind, facts, fingerprint))
            else:
                silent.append(f"{variant.label} on {gpu_type} cannot be predicted: {reason}")
    return tuple(found), tuple(silent)


def measured_as(variant: Variant, fingerprints: Iterable[Fingerprint]) -> Fingerprint | None:
    """The fingerprint that was taken of this variant."""
    alike = [f for f in fingerprints if f.precision is variant.precision]
    known = tuple(f.kv_precision for f in alike)
    kv_precision = cache_among(variant, known)
    return next((f for f in alike if f.kv_precision is kv_precision), None)


def cache_among(variant: Variant, known: Sequence[Precision]) -> Precision:
    """The variant's own; where it leaves the choice, another full precision that was measured will do.

    A quantised cache is never chosen: the variant's accuracy does not speak for it.
    """
    wanted = variant.cache_precision
    if variant.kv_precision is None and wanted not in known:
        return next((kv for kv in known if kv in FULL_PRECISIONS), wanted)
    return wanted


def _places(fingerprints: Iterable[Fingerprint], calibrations: Iterable[Calibration]) -> Iterator[tuple[str, str]]:
    """Engines and GPU types, each once."""
    places = [(calibration.engine, calibration.gpu_type) for calibration in calibrations]
    places += [(fingerprint.engine, fingerprint.gpu_type) for fingerprint in fingerprints]
    yield from dict.fromkeys(places)


def _against(
    calibration: Calibration, facts: ModelFacts, variant: Variant, kv_precision: Precision, context_tokens: int
) -> str:
    """Why the calibration does not speak for the variant."""
    least = min(calibration.scope.tp_degrees)
    reason = law.uncovered(
        calibration, facts, variant.precision, kv_precision, tp=least, context_tokens=context_tokens
    )  # fmt: skip
    if not reason and not any(constant.name.startswith("runtime.") for constant in calibration.memory):
        return "what its runtime takes of the memory was never measured"
    return reason
