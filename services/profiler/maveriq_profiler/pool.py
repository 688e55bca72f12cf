"""What is measured together: the samples of one engine, engine version and GPU type."""

from dataclasses import dataclass

from maveriq.contracts import Calibration, RunSample, Value


@dataclass(frozen=True, slots=True)
class Pool:
    """Samples of another GPU type or engine version say nothing about this one."""

    engine: str
    engine_version: str
    gpu_type: str
    max_pp: int
    """Most pipeline stages that the engine can run there; no part of the name."""

    @property
    def name(self) -> str:
        return "|".join((self.engine, self.engine_version, self.gpu_type))

    @classmethod
    def of(cls, calibration: Calibration) -> "Pool":
        one = calibration
        return cls(one.engine, one.engine_version, one.gpu_type, one.max_pp)


class Outcome(Value):
    """What one run of the programme gave: samples, or why there are none."""

    samples: tuple[RunSample, ...] = ()
    cost_s: float
    """GPU-seconds."""
    problem: str = ""
