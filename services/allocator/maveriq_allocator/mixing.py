"""How many layers GPUs of each speed get. Pure: a selection for each speed in, the fastest pipeline's parts out.

One request passes through the stages one after the other, so a layer takes what it takes on the GPU that it sits on:
the latency is the sum over the layers, and the fastest GPUs get all they can hold, but one layer for each other stage.
Exact: all divisions of stages and layers between the speeds are compared, by latency first and cost second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maveriq_allocator.selection import NEVER, Block, Costs, Selection

Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """The stages on GPUs of one speed."""

    blocks: tuple[Block, ...]
    num_layers: int
    """Of all of them together."""


@dataclass(frozen=True, slots=True)
class Mixture:
    latency_ns: int
    """Of all layers, one after the other."""
    cost: int
    parts: tuple[Part, ...]
    """One for each speed, in the order asked."""


@dataclass(frozen=True, slots=True)
class _Reached:
    """Best for each (stages, first taken, last taken, layers placed)."""

    times: Times
    costs: Costs


def mix(speeds: Sequence[tuple[int, Selection]], pp: int, num_layers: int) -> Mixture | None:
    """The pipeline of least latency, and of these the cheapest; None where the GPUs cannot hold it.

    Args:
        speeds: (ns per layer, the GPUs of that speed).
    """
    alone = [_alone(selection, layer_ns) for layer_ns, selection in speeds]
    reached = [alone[0]]
    for added in alone[1:]:
        reached.append(_together(reached[-1], added))
    state = (pp, 1, 1, num_layers)
    if reached[-1].costs[state] >= NEVER:
        return None
    latency_ns, cost = int(reached[-1].times[state]), int(reached[-1].costs[state])
    parts: list[Part] = []
    for number in reversed(range(1, len(speeds))):
        mine = _share(reached[number - 1], alone[number], reached[number], state)
        parts.append(_part(speeds[number][1], mine))
        state = (state[0] - mine[0], state[1] - mine[1], state[2] - mine[2], state[3] - mine[3])
    parts.append(_part(speeds[0][1], state))
    return Mixture(latency_ns, cost, tuple(reversed(parts)))


def _alone(selection: Selection, layer_ns: int) -> _Reached:
    """On GPUs of one speed: blocks that hold more than n layers can be given n, and each stage at least one."""
    costs = np.minimum.accumulate(selection.least[..., ::-1], axis=-1)[..., ::-1].copy()
    for stages in range(costs.shape[0]):
        costs[stages, ..., : stages] = NEVER  # fmt: skip
    costs[0, :, :, 1:] = NEVER
    times = np.broadcast_to(np.arange(costs.shape[-1], dtype=np.int64) * layer_ns, costs.shape)
    return _Reached(np.where(costs < NEVER, times, NEVER), costs)


def _together(a: _Reached, b: _Reached) -> _Reached:
    times, costs = np.full_like(a.times, NEVER), np.full_like(a.costs, NEVER)
    num_layers = a.times.shape[-1] - 1
    mine: Times = np.arange(num_layers + 1, dtype=np.int64)
    theirs: Times = mine[:, None] - mine[None, :]  # [layers of both, layers of b] -> layers of a
    impossible: NDArray[np.bool_] = theirs < 0
    for at, from_a, from_b in _divisions(a.times.shape[0] - 1):
        if a.costs[from_a].min() >= NEVER or b.costs[from_b].min() >= NEVER:
            continue
        time = a.times[from_a][theirs] + b.times[from_b][None, :]
        cost = a.costs[from_a][theirs] + b.costs[from_b][None, :]
        time[impossible | (cost >= NEVER)] = NEVER
        fastest = time.min(axis=1)
        cheapest = np.where(time == fastest[:, None], cost, NEVER).min(axis=1)
        better = (fastest < times[at]) | ((fastest == times[at]) & (cheapest < costs[at]))
        times[at] = np.where(better, fastest, times[at])
        costs[at] = np.where(better, cheapest, costs[at])
    return _Reached(times, costs)


Corner = tuple[int, int, int]  # stages, first taken, last taken


def _divisions(pp: int) -> Iterator[tuple[Corner, Corner, Corner]]:
    """What is taken of both, of a and of b."""
    ends = [(first, last) for first in (0, 1) for last in (0, 1)]
    for stages in range(pp + 1):
        for mine in range(stages + 1):
            for first, last in ends:
                for my_first, my_last in ends:
                    if my_first <= first and my_last <= last:
                        theirs = (stages - mine, first - my_first, last - my_last)
                        yield (stages, first, last), theirs, (mine, my_first, my_last)


def _share(a: _Reached, b: _Reached, both: _Reached, state: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """What b has of `state`."""
    stages, first, last, layers = state
    for at, from_a, from_b in _divisions(stages):
        if at != (stages, first, last):
            continue
        for mine in range(layers + 1):
            time = a.times[from_a][layers - mine] + b.times[from_b][mine]
            cost = a.costs[from_a][layers - mine] + b.costs[from_b][mine]
            if time == both.times[state] and cost == both.costs[state]:
                return (*from_b, mine)
    raise AssertionError("a value was reached from somewhere")


def _part(selection: Selection, state: tuple[int, int, int, int]) -> Part:
    stages, first, last, layers = state
    held = layers + int(selection.least[stages, first, last, layers:].argmin())
    return Part(tuple(selection.blocks(stages, first, last, held)), layers)
