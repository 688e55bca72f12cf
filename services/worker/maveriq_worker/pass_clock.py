"""Which steps of the torch engine are passes as the law means them. Pure: steps and times in, passes out.

A pipeline works on several micro-batches at once. Such steps wait for one another and share the machine, so their times
are no pass's: only a step that no other overlapped is told, from its launch by the first stage until its tokens are
chosen by the last and known to the first. With one stage that is every step. A pipeline under load would tell of none,
so now and then it lets what is in flight come home and runs one step alone: for that moment its other stages stand
still. A prompt of several steps is told if nothing came between them.
"""

from dataclasses import dataclass

from maveriq_worker.timings import Passed
from maveriq_worker.torch_steps import Step

ALONE_EVERY_S = 20.0  # costs about a pass of throughput each time: half a percent of passes of 100 ms


@dataclass(slots=True)
class _Flight:
    step: Step
    prompt_tokens: int | None
    began_s: float | None
    """None: not to be told."""


class PassClock:
    """Of one replica."""

    def __init__(self) -> None:
        self._flights: dict[int, _Flight] = {}
        self._unended: tuple[int, float | None] | None = None
        """Group and beginning of a prompt whose latest step chose nothing: a GPU may still be at it."""
        self._alone: int | None = None
        """Group of the step that runs alone on purpose."""
        self._tried_s: float | None = None
        """When a step was last alone; None: none ever began."""

    def holds(self, at_s: float) -> bool:
        """Whether the next step is to wait for those in flight; never where there are none."""
        if not self._flights or self._tried_s is None:
            return False
        return self._alone is not None or at_s - self._tried_s >= ALONE_EVERY_S

    def launched(self, step: Step, prompt_tokens: int | None, at_s: float) -> None:
        """
        Args:
            prompt_tokens: of all requests of a decode step; None: the step reads prompts.
        """
        began_s: float | None = at_s
        if self._tried_s is None:
            self._tried_s = at_s
        elif not self._flights and at_s - self._tried_s >= ALONE_EVERY_S:
            self._alone = step.group
        if self._unended is not None:
            group, since_s = self._unended
            began_s = since_s if prompt_tokens is None and group == step.group and step.starts[0] > 0 else None
        elif prompt_tokens is None and step.starts[0] > 0:
            began_s = None
        for other in self._flights.values():
            other.began_s = began_s = None
        self._flights[step.group] = _Flight(step, prompt_tokens, began_s)

    def done(self, group: int, at_s: float) -> Passed | None:
        """The group's step is done: the pass that it ended, if that can be told."""
        flight = self._flights.pop(group)
        if self._alone == group or flight.began_s is not None:
            self._alone, self._tried_s = None, at_s
        if not flight.step.picks:
            self._unended = (group, flight.began_s)
            return None
        self._unended = None
        return None if flight.began_s is None else _passed(flight, (at_s - flight.began_s) * 1e3)


def _passed(flight: _Flight, ms: float) -> Passed:
    step, batch = flight.step, len(flight.step.starts)
    if flight.prompt_tokens is None:
        return Passed(True, batch, step.starts[0] + len(step.token_ids[0]), 1, ms)
    input_tokens = flight.prompt_tokens / batch
    return Passed(False, batch, input_tokens, sum(step.starts) / batch + 1 - input_tokens, ms)
