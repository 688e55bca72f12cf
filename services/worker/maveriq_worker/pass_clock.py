"""Which steps of the torch engine are passes as the law means them. Pure: steps and times in, passes out.

A pipeline works on several micro-batches at once. Such steps wait for one another and share the machine, so their times
are no pass's: only a step that no other overlapped is told, from its launch by the first stage until its tokens are
chosen by the last and known to the first. With one stage that is every step; a pipeline tells of those that it ran
alone. A prompt of several steps is told if nothing came between them.
"""

from dataclasses import dataclass

from maveriq_worker.timings import Passed
from maveriq_worker.torch_steps import Step


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

    def launched(self, step: Step, prompt_tokens: int | None, at_s: float) -> None:
        """
        Args:
            prompt_tokens: of all requests of a decode step; None: the step reads prompts.
        """
        began_s: float | None = at_s
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
