"""What speaks for a model on each kind of GPU. Pure: what was measured in, estimators and why others are silent out."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from maveriq import law
from maveriq.contracts import (
    FULL_PRECISIONS,
    Calibration,
    Fingerprint,
    Fragment,
    Model,
    ModelFacts,
    Precision,
    Variant,
)
from maveriq.law.weights import TORCH_QUANTISED
from maveriq_planner.estimate import Estimator, Kind
from maveriq_planner.estimators.calibrated import CalibratedLaw
from maveriq_planner.estimators.laws import laws_of
from maveriq_planner.estimators.mixed import Family
from maveriq_planner.estimators.sampled import sampled

NOTHING = "nothing was measured"


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
    families: tuple[Family, ...] = ()
    """Precisions that can be mixed in one pipeline."""
    fragments: tuple[Fragment, ...] = ()
    """What such pipelines are split over."""

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


@dataclass(frozen=True, slots=True)
class Rig:
    """An engine on a GPU type, and what was measured there."""

    engine: str
    gpu_type: str
    calibration: Calibration | None
    fingerprints: tuple[Fingerprint, ...]

    def kind(self, variant: Variant, kv_precision: Precision) -> Kind:
        return Kind(self.engine, self.gpu_type, variant, kv_precision)

    def silent(self, reasons: Mapping[str, Sequence[Variant]]) -> Iterator[str]:
        """One sentence for each reason."""
        for reason, variants in reasons.items():
            labels = ", ".join(variant.label for variant in variants)
            yield f"{labels} on {self.gpu_type} cannot be predicted: {reason}"

    def fingerprint_of(self, variant: Variant) -> Fingerprint | None:
        """That was taken of this variant."""
        alike = [f for f in self.fingerprints if f.precision is variant.precision]
        kv_precision = cache_among(variant, tuple(f.kv_precision for f in alike))
        return next((f for f in alike if f.kv_precision is kv_precision), None)


def rigs_of(fingerprints: Iterable[Fingerprint], calibrations: Iterable[Calibration]) -> list[Rig]:
    """Each once, those that are calibrated first."""
    calibrated: dict[tuple[str, str], Calibration] = {}
    for one in calibrations:
        calibrated.setdefault((one.engine, one.gpu_type), one)
    taken: dict[tuple[str, str], list[Fingerprint]] = {place: [] for place in calibrated}
    for fingerprint in fingerprints:
        taken.setdefault((fingerprint.engine, fingerprint.gpu_type), []).append(fingerprint)
    return [Rig(*place, calibrated.get(place), tuple(own)) for place, own in taken.items()]


def by_law(
    model: Model,
    facts: ModelFacts,
    fingerprints: Sequence[Fingerprint],
    calibrations: Sequence[Calibration],
    named: Sequence[str] = (),
    context_tokens: int = 0,
) -> tuple[tuple[Estimator, ...], tuple[str, ...]]:
    """A GPU type's calibration where it covers the variant, else the model's own fingerprint."""
    found: list[Estimator] = []
    silent: list[str] = []
    rigs = rigs_of(fingerprints, calibrations)
    laws = laws_of(facts, [rig.calibration for rig in rigs if rig.calibration is not None])
    for which, rig in enumerate(rigs):
        reasons: defaultdict[str, list[Variant]] = defaultdict(list)
        for variant in model.variants:
            reason = NOTHING
            if rig.calibration is not None:
                kv_precision = cache_among(variant, rig.calibration.scope.kv_precisions)
                reason = _against(rig.calibration, facts, variant, kv_precision, context_tokens)
                if not reason:
                    found.append(CalibratedLaw(rig.kind(variant, kv_precision), laws, which))
                    continue
            fingerprint = rig.fingerprint_of(variant)
            if fingerprint is not None:
                found.append(sampled(rig.kind(variant, fingerprint.kv_precision), facts, fingerprint))
            else:
                reasons[reason].append(variant)
        silent += rig.silent(reasons)
    return tuple(found), tuple(silent)


def cache_among(variant: Variant, known: Sequence[Precision]) -> Precision:
    """The variant's own; where it leaves the choice, another full precision that was measured will do.

    A quantised cache is never chosen: the variant's accuracy does not speak for it.
    """
    wanted = variant.cache_precision
    if variant.kv_precision is None and wanted not in known:
        return next((kv for kv in known if kv in FULL_PRECISIONS), wanted)
    return wanted


def _against(
    calibration: Calibration, facts: ModelFacts, variant: Variant, kv_precision: Precision, context_tokens: int
) -> str:
    """Why the calibration does not speak for the variant."""
    least = min(calibration.scope.tp_degrees)
    reason = law.uncovered(
        calibration, facts, variant.precision, kv_precision, tp=least, context_tokens=context_tokens
    )  # fmt: skip
    if not reason and not any(constant.name.startswith("runtime.") for constant in calibration.memory):
        reason = "what its runtime takes of the memory was never measured"
    if not reason:
        return ""
    measurable = calibration.engine == "torch" and variant.precision in TORCH_QUANTISED
    lacking = measurable and variant.precision not in calibration.scope.precisions
    more = f"; maveriq calibrate --precision {variant.precision} has it measured" if lacking else ""
    return f"the GPU type's calibration does not speak for it: {reason}{more}"
