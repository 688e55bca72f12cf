"""What of a programme is done, and what the budget still allows. Pure: items and outcomes in, the next items out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maveriq.contracts import QUIET_SHARE
from maveriq_profiler.pool import Outcome
from maveriq_profiler.programme import Item

_LEAST = 2  # models, whatever the budget says: of fewer there is no calibration


@dataclass(frozen=True, slots=True)
class Agenda:
    items: Sequence[Item]
    """The whole programme, most telling first."""
    outcomes: Mapping[str, Outcome]
    """Of what was run, by the items' keys; others than the programme's may be among them."""
    spent_s: float
    budget_s: float

    @property
    def next_items(self) -> tuple[Item, ...]:
        """What may be run now, most telling first."""
        first = self._pending[: max(0, _LEAST - self._num_good)]
        rest = self._pending[len(first) :]
        return (*first, *(item for item in rest if self.spent_s + item.expected_s <= self.budget_s))

    @property
    def num_done(self) -> int:
        return len(self.items) - len(self._pending)

    @property
    def num_planned(self) -> int:
        """What is done, and what the budget is expected to allow besides."""
        left_s, planned = self.budget_s - self.spent_s, self.num_done
        for number, item in enumerate(self._pending):
            if number < _LEAST - self._num_good or item.expected_s <= left_s:
                left_s -= item.expected_s
                planned += 1
        return planned

    @property
    def left_undone(self) -> str:
        """Why the programme is not whole, and what to do about it; '' where it is."""
        if not self.items:
            return "not even the smallest model of the programme fits; give the GPU more memory"
        reasons: list[str] = []
        if self._pending:
            reasons.append(f"the budget is spent with {len(self._pending)} models left; calibrate again to go on")
        failed = [outcome for outcome in self._outcomes if outcome.problem]
        if failed:
            reasons.append(f"{len(failed)} models could not be measured ({failed[0].problem})")
        disturbed = [outcome for outcome in self._outcomes if outcome.others > QUIET_SHARE]
        if disturbed:
            reasons.append(
                f"{len(disturbed)} models are provisional, as others used the device while they were measured: they "
                "are measured again when it is quiet"
            )
        return "; ".join(reasons)

    @property
    def _outcomes(self) -> list[Outcome]:
        return [self.outcomes[item.key] for item in self.items if item.key in self.outcomes]

    @property
    def _pending(self) -> list[Item]:
        return [item for item in self.items if item.key not in self.outcomes]

    @property
    def _num_good(self) -> int:
        return sum(item.key in self.outcomes and not self.outcomes[item.key].problem for item in self.items)
