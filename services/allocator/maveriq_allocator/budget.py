"""How much one decision may look at, and for how long. Pure: a clock in, what is left out.

A decision is over all candidates of a plan. It is made within `DECISION_S`; where nothing found seats by then and
something was left out, it is made again with more patience, for to be refused is worse than to be late.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

DECISION_S = 0.05
PATIENT_S = 2.0
MAX_STATES = 200_000  # of the packings of replicas that are seated one after the other: 10-20 ms
MAX_JOINT = 4  # nodes whose replicas are decided at once (`joint`)
JOINT_S = 1.0  # for one of them, on the wall: eight GPUs and two stages take a quarter; what was found by then counts
LEAST_S = 1e-3

Clock = Callable[[], float]
"""Seconds, since whenever."""


@dataclass(slots=True)
class Budget:
    """Of one decision over all candidates of a plan."""

    clock: Clock | None = None
    """None: there is all the time."""
    until_s: float = inf
    num_states: float = inf
    num_joint: int = MAX_JOINT
    was_short: bool = False
    """Something was left out, so what found no seats might have some, and what found some might have better ones."""

    def left_s(self) -> float:
        return inf if self.clock is None else self.until_s - self.clock()

    def is_late(self) -> bool:
        late = self.left_s() <= 0
        self.was_short |= late
        return late

    def is_spent(self) -> bool:
        """Whether there is no more to look for what is best with."""
        spent = self.num_states <= 0 or self.is_late()
        self.was_short |= spent
        return spent

    def joint_s(self) -> float:
        """Seconds for a solution for a node that is decided at once."""
        return max(LEAST_S, min(JOINT_S, self.left_s() / 2))


def budgets(clock: Clock | None) -> Iterator[Budget]:
    """Of a decision, and of the same once more where the first `was_short` and found nothing."""
    first = Budget(clock, _after(DECISION_S, clock), MAX_STATES)
    yield first
    if first.was_short:
        yield Budget(clock, _after(PATIENT_S, clock))


def _after(seconds: float, clock: Clock | None) -> float:
    return inf if clock is None else clock() + seconds
