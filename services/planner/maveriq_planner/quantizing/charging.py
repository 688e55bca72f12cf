"""Linear parts of what a pipeline costs, each never more than all of it. Pure: weights in, charges out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from maveriq_planner.quantizing.pipeline import Weights


@dataclass(frozen=True, slots=True)
class Charge:
    """A linear objective: what a millisecond of each kind costs, and a unit of sensitivity."""

    prefill_sum: float
    prefill_longest: float
    decode_sum: float
    decode_longest: float
    lost: float

    def evened(self, num_stages: int) -> "Charge":
        """Never more: the longest stage for the mean of all."""
        return Charge(self.prefill_sum + self.prefill_longest / num_stages, 0.0,
                      self.decode_sum + self.decode_longest / num_stages, 0.0, self.lost)  # fmt: skip

    def dearer(self, price: float) -> "Charge":
        return replace(self, lost=self.lost + price)


def charges(w: Weights, num_stages: int) -> Iterator[Charge]:
    """steps * max(groups * max D, sum D) is at least either, and at least any mean of the two."""
    shares = (0.0,) if not w.steps or w.groups >= num_stages else (1.0,) if w.groups == 1 else (0.0, 0.5, 1.0)
    for share in shares:
        yield Charge(w.prefill_sum, w.prefill_longest, w.decode_sum + share * w.steps,
                     w.decode_longest + (1 - share) * w.steps * w.groups, w.theta)  # fmt: skip
