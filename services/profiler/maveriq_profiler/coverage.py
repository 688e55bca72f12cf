"""Which GPU types need no fingerprint of a model, and which rigs are still to be asked. Pure: what is known in."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from maveriq.contracts import Calibration, Fingerprint, ModelFacts
from maveriq.law import uncovered
from maveriq_profiler.formats import Format
from maveriq_profiler.rig_seen import RigSeen


@dataclass(frozen=True, slots=True)
class Kind:
    """What is measured, or covered, at once."""

    engine: str
    engine_version: str
    gpu_type: str
    format: Format

    @classmethod
    def of(cls, fingerprint: Fingerprint) -> "Kind":
        one = fingerprint
        return cls(one.engine, one.engine_version, one.gpu_type, Format(one.precision, one.kv_precision))


def current(calibrations: Iterable[Calibration], present: Iterable[RigSeen]) -> tuple[Calibration, ...]:
    """Without those of an engine version that its GPU type no longer runs."""
    runs = {(rig.engine, rig.gpu_type): rig.engine_version for rig in present}
    return tuple(
        one for one in calibrations if runs.get((one.engine, one.gpu_type), one.engine_version) == one.engine_version
    )


def covered(
    facts: ModelFacts, formats: Iterable[Format], calibrations: Iterable[Calibration], context_tokens: int = 0
) -> set[Kind]:
    """Where the law predicts the model without its being measured.

    Args:
        context_tokens: prompt and answer of the mean request.
    """
    return {
        Kind(one.engine, one.engine_version, one.gpu_type, each)
        for each in formats
        for one in calibrations
        if not uncovered(one, facts, each.precision, each.kv_precision, context_tokens=context_tokens)
    }


def missing(
    present: Iterable[RigSeen], known: Collection[Kind], wanted: Sequence[Format], asked: Collection[str]
) -> tuple[str, ...]:
    """Names of the rigs that could add something to what is known, and were not asked yet."""
    return tuple(
        rig.name
        for rig in present
        if rig.name not in asked
        and any(
            Kind(rig.engine, rig.engine_version, rig.gpu_type, each) not in known
            for each in wanted
            if each.runs_in(rig.precisions)
        )
    )
