"""Which precisions can be mixed in one pipeline. Pure: what was measured in, families of laws out.

A quantised layer joins a full precision where the law was measured with the same cache and the same activations.
"""

from collections.abc import Sequence
from dataclasses import replace

from maveriq import law
from maveriq.contracts import FULL_PRECISIONS, Calibration, Fingerprint, FingerprintMeasured, Precision, Variant
from maveriq_planner.estimators.mixed import Family, Place
from maveriq_planner.quantizing.layer_law import LayerLaw, layer_law
from maveriq_planner.space import Space, by_law


def mixing(space: Space, event: FingerprintMeasured, context_tokens: int) -> Space:
    """With what can be mixed over the fragments that were free when the intent was admitted."""
    fragments = event.admission.fragments
    if not fragments:
        return space
    families, silent = families_of(space, event.fingerprints, event.calibrations, context_tokens)
    return replace(space, families=families, fragments=fragments, silent=(*space.silent, *silent))


def families_of(
    space: Space, fingerprints: Sequence[Fingerprint], calibrations: Sequence[Calibration], context_tokens: int
) -> tuple[tuple[Family, ...], tuple[str, ...]]:
    """And why there is none, one sentence each."""
    given = space.model.sensitivity
    if given is None:
        return (), ()
    num_layers = space.facts.num_layers
    if len(given.layers) != num_layers:
        return (), (
            f"the sensitivity of {space.model.name} is of {len(given.layers)} layers and it has {num_layers}: "
            f"maveriq accuracy {space.model.name} --layers measures it again",
        )
    full = [
        (estimator, own)
        for estimator in space.estimators
        if estimator.kind.precision in FULL_PRECISIONS and estimator.kind.variant.source is None
        and (own := layer_law(estimator)) is not None
    ]  # fmt: skip
    quantised = _quantised(space, {estimator.kind.kv_precision for estimator, _ in full}, given.precisions,
                           fingerprints, calibrations, context_tokens)  # fmt: skip
    found: dict[tuple[str, Variant, Precision], dict[Place, LayerLaw]] = {}
    for estimator, own in full:
        kind = estimator.kind
        beside = {
            (other.kind.gpu_type, other.kind.precision): other
            for other in quantised
            if (other.kind.engine, other.kind.gpu_type, other.kind.kv_precision)
            == (kind.engine, kind.gpu_type, kind.kv_precision)
            and law.unquantised_bytes(other.kind.precision, kind.kv_precision)
            == law.unquantised_bytes(kind.precision, kind.kv_precision)
        }
        if beside:
            laws = found.setdefault((kind.engine, kind.variant, kind.kv_precision), {})
            laws |= {(kind.gpu_type, kind.precision): own, **beside}
    return tuple(Family(*key, laws) for key, laws in found.items()), ()


def _quantised(
    space: Space, kv_precisions: set[Precision], precisions: Sequence[Precision],
    fingerprints: Sequence[Fingerprint], calibrations: Sequence[Calibration], context_tokens: int,
) -> list[LayerLaw]:  # fmt: skip
    """Of all quantised precisions whose sensitivity is known: what the model lists as variants does not matter."""
    variants = tuple(
        Variant(precision=precision, kv_precision=kv)
        for kv in sorted(kv_precisions)
        for precision in precisions
        if precision not in FULL_PRECISIONS
    )
    model = space.model.model_copy(update={"variants": variants})
    estimators, _ = by_law(model, space.facts, fingerprints, calibrations, context_tokens=context_tokens)
    laws = [layer_law(estimator) for estimator in estimators]
    return [one for one in laws if one is not None]
