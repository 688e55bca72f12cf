"""What a request meets in a replica that the workload keeps busy. Pure: idle times and a rate in, TTFT and TPOT out."""

from collections.abc import Callable
from dataclasses import dataclass
from math import pow, sqrt

LENGTH_VARIATION = 1.0  # squared, of service times: answers vary about as much as they are long; see docs/law.md


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica's times for the workload's mean request."""

    prefill_ms: float
    """One prompt, through all stages."""
    prefill_stage_ms: float
    """One prompt, on the stage that it occupies longest."""
    step_ms: Callable[[int], float]
    """Between two tokens of each of so many decoding requests."""
    output_tokens: int
    max_batch: int

    def request_ms(self, batch: int) -> float:
        """Time from one finished request to the next while `batch` are always in hand."""
        prefill_ms = max(self.prefill_stage_ms, self.prefill_ms / batch)
        return prefill_ms + (self.output_tokens - 1) * self.step_ms(batch) / batch


@dataclass(frozen=True, slots=True)
class Load:
    busy_batch: int
    """Requests in hand at once; every slot where the rate is too high."""
    ttft_ms: float
    tpot_ms: float
    capacity_per_s: float
    """Requests finished with every slot busy. Rates must stay below it."""
    sustained: bool
    """Whether they do. If not the queue grows without end, and ttft_ms leaves it out."""

    def e2e_ms(self, output_tokens: int) -> float:
        return self.ttft_ms + (output_tokens - 1) * self.tpot_ms


def settle(replica: Replica, rate_per_s: float) -> Load:
    """The load at which the replica finishes requests as fast as they arrive.

    With b requests in hand one finishes every request_ms(b), so each stays b * request_ms(b) (Little):
    its own prefill, a step for each token, and the other requests' prefills in between. b is the
    smallest that keeps up; 1, the idle replica's times, at low rates.
    """
    rate_per_ms = rate_per_s / 1e3
    slots = replica.max_batch
    sustained = rate_per_ms * replica.request_ms(slots) < 1
    busy = _smallest(lambda batch: rate_per_ms * replica.request_ms(batch) < 1, slots) if sustained else slots
    step_ms = replica.step_ms(busy)
    interrupted_ms = max(0.0, busy * replica.prefill_stage_ms - replica.prefill_ms)
    ttft_ms = replica.prefill_ms + _queue_ms(replica, busy, step_ms, rate_per_ms if sustained else None)
    return Load(
        busy_batch=busy,
        ttft_ms=ttft_ms,
        tpot_ms=step_ms + interrupted_ms / max(1, replica.output_tokens - 1),
        capacity_per_s=1e3 / replica.request_ms(slots),
        sustained=sustained,
    )


def _queue_ms(replica: Replica, busy: int, step_ms: float, rate_per_ms: float | None) -> float:
    """Mean wait before a prefill starts.

    For a free slot (Sakasegawa 1977: M/G/c), then, where others are in hand, for the step under way and
    for prompts that came just before (M/D/1).
    """
    others = (busy - 1) / busy
    if rate_per_ms is None:
        return others * step_ms / 2
    slots = replica.max_batch
    use = rate_per_ms * replica.request_ms(slots)
    for_slot_ms = replica.request_ms(slots) * pow(use, sqrt(2 * (slots + 1)) - 1) / (1 - use)
    reading = rate_per_ms * replica.prefill_stage_ms
    for_prompts_ms = reading * replica.prefill_stage_ms / (2 * (1 - reading))
    return for_slot_ms * (1 + LENGTH_VARIATION) / 2 + others * (step_ms / 2 + for_prompts_ms)


def _smallest(enough: Callable[[int], bool], most: int) -> int:
    """Smallest number in 1..most that is enough; `most` is."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
