"""A replica with continuous batching, request by request: what the queueing formulas are held against."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from random import Random

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Engine:
    """One stage: a prompt is read between two steps as soon as a slot is free."""

    prefill_ms: float
    step_ms: Callable[[int], float]
    slots: int
    output_tokens: int
    """Mean; at least 2."""


@dataclass
class _Request:
    arrived: float
    first: float
    tokens: int
    left: int


def simulate(
    engine: Engine, rate_per_ms: float, *, num_requests: int, seed: int, in_flight: int | None = None
) -> tuple[Array, Array, Array]:
    """TTFT, TPOT and E2E of requests of about the mean length; Poisson arrivals, geometric lengths.

    TTFT is that of all requests: it does not depend on one's own length.
    """
    random = Random(seed)
    now, arrival = 0.0, random.expovariate(rate_per_ms)
    line: deque[float] = deque()
    hand: list[_Request] = []
    done: list[tuple[float, float, int]] = []
    while len(done) < num_requests:
        while arrival <= now:
            if in_flight is None or len(line) + len(hand) < in_flight:
                line.append(arrival)
            arrival += random.expovariate(rate_per_ms)
        if line and len(hand) < engine.slots:
            arrived = line.popleft()
            now += engine.prefill_ms
            more = 1 + int(log(1 - random.random()) / log(1 - 1 / (engine.output_tokens - 1)))
            hand.append(_Request(arrived, now, more + 1, more))
        elif hand:
            now += engine.step_ms(len(hand))
            for request in hand:
                request.left -= 1
            ended = [request for request in hand if request.left == 0]
            done += [(r.first - r.arrived, (now - r.first) / (r.tokens - 1), r.tokens) for r in ended]
            hand = [request for request in hand if request.left]
        else:
            now = arrival
    ttft, tpot, tokens = np.array(done[num_requests // 10 :]).T
    alike = (tokens > 0.6 * engine.output_tokens) & (tokens < 1.7 * engine.output_tokens)
    return ttft, tpot[alike], (ttft + tpot * (engine.output_tokens - 1))[alike]
