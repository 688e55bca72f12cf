"""What one replica has answered since it started. Pure: last chunks in, counts and spreads out."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from maveriq.contracts import Chunk

BOUNDS_S = tuple(part * 10**power for power in range(-3, 2) for part in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
CLIENT_GONE = "client_gone"


@dataclass(slots=True)
class Spread:
    """How many times are at most each of BOUNDS_S, as Prometheus counts a histogram."""

    sum_s: float = 0.0
    _counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))

    def add(self, time_s: float) -> None:
        self._counts[bisect_left(BOUNDS_S, time_s)] += 1
        self.sum_s += time_s

    def buckets(self) -> Iterator[tuple[str, float]]:
        """Upper bound and number of times up to it."""
        return zip((*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"), accumulate(self._counts), strict=True)


@dataclass(slots=True)
class Tally:
    """Times count from when the worker took the request: what it waited at the broker is not in them."""

    ended: Counter[str] = field(default_factory=Counter[str])
    """Requests by finish reason, and those that nobody read to the end."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    queue: Spread = field(default_factory=Spread)
    ttft: Spread = field(default_factory=Spread)
    tpot: Spread = field(default_factory=Spread)

    def add(self, last: Chunk | None) -> None:
        """A request has ended.

        Args:
            last: None: its client was gone.
        """
        self.ended[CLIENT_GONE if last is None or last.finish_reason is None else last.finish_reason] += 1
        if last is None:
            return
        if last.usage is not None:
            self.prompt_tokens += last.usage.prompt_tokens
            self.output_tokens += last.usage.completion_tokens
        if last.timing is not None:
            self.queue.add(last.timing.queue_ms / 1e3)
            self.ttft.add((last.timing.queue_ms + last.timing.prefill_ms) / 1e3)
            if last.usage is not None and last.usage.completion_tokens > 1:
                self.tpot.add(last.timing.decode_ms / 1e3 / (last.usage.completion_tokens - 1))
