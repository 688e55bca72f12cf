"""What is measured together: the samples of one engine, engine version and GPU type."""

from dataclasses import dataclass

from maveriq.contracts import QUIET_SHARE, Calibration, RunSample, Value, nine_of_ten

MAX_TRIES = 4  # of one measurement: a device that others use each time is not quiet on any day


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
    tries: int = 1
    """Measurements, of which the least disturbed is kept."""

    @property
    def others(self) -> float:
        """Share of the device that others took meanwhile."""
        return nine_of_ten(sample.others for sample in self.samples)

    @property
    def is_due_again(self) -> bool:
        return self.others > QUIET_SHARE and self.tries < MAX_TRIES

    def after(self, again: "Outcome") -> "Outcome":
        """Of the two the one that was disturbed less; both were paid for."""
        better = again if not again.problem and again.others < self.others else self
        return better.model_copy(update={"tries": self.tries + 1, "cost_s": self.cost_s + again.cost_s})
