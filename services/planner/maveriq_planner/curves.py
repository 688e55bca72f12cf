"""How long requests take in a replica, by how many it has in hand. Pure: idle times in, curves over batches out."""

from dataclasses import dataclass

import numpy as np

from maveriq_planner.arrays import Array, Indices
from maveriq_planner.interpolation import Grid, Lines, grid_of, lines_of

_MOST_PATIENCE = 5e21  # of no consequence: use^k is 0 long before, and infinity times 0 is no number


@dataclass(frozen=True, slots=True)
class Curves:
    """Times of R rows for the workload's mean request, by batch; linear between the points of a grid."""

    prefill_ms: Array  # [R]
    """One prompt, through all stages."""
    stage_ms: Array  # [R]
    """One prompt, on the stage that it occupies longest."""
    grid: Grid
    step_ms: Array  # [R, G]
    """Between two tokens of each of so many decoding requests."""
    stay_ms: Array  # [R, G]
    """Of one request, with so many in hand all the time: its own prefill and the others', and its steps."""
    output_tokens: int
    step: Lines
    stay: Lines
    reach_per_ms: Array  # [R * width]
    """Rates that keep a batch of each point busy, the highest of those before it included; then inf."""
    width: int
    """A power of two above G."""


def curves_of(prefill_ms: Array, stage_ms: Array, points: Array, step_ms: Array, output_tokens: int) -> Curves:
    """With b always in hand one finishes every stay / b (Little): a pipeline reads other prompts beside one's own.

    Args:
        points: of the grid, whole numbers ascending from 1.
        step_ms: [R, G]
    """
    if len(points) == 1:  # a line takes two points
        points, step_ms = np.array([1.0, 2.0]), np.repeat(step_ms, 2, axis=1)
    prompts = np.maximum(points * stage_ms[:, None], prefill_ms[:, None])
    stay_ms = prompts + (output_tokens - 1) * step_ms
    grid = grid_of(points)
    width = 1 << len(points).bit_length()
    reach = np.full((len(stay_ms), width), np.inf)
    np.maximum.accumulate((points - 1) / stay_ms, axis=1, out=reach[:, : len(points)])
    return Curves(
        prefill_ms, stage_ms, grid, step_ms, stay_ms, output_tokens, lines_of(grid, step_ms), lines_of(grid, stay_ms),
        reach.ravel(), width,
    )  # fmt: skip


def patience(curves: Curves, slots: Indices) -> Array:
    """Exponent k of C = use^k, the chance that a request finds every slot taken. [R, S] for S numbers of slots.

    k = sum over n < s of (m(n+1) ... m(s)) / m(s)^(s-n), m(n) the rate at n in hand: exact in heavy traffic, and exact
    at any for one slot or constant m. Where m grows with n (a batch costs nothing) it is within 6 % of Sakasegawa's
    sqrt(2 (s + 1)) - 1 for M/M/s (1977). Worked out from the innermost bracket, n = 0, outwards.
    """
    numbers = np.arange(1.0, slots.max() + 1)
    rows = np.arange(len(curves.stay_ms)) * curves.grid.cells
    cells = curves.grid.cell[1 : len(numbers) + 1, None] + rows
    each = numbers[:, None]
    rates = each / curves.stay.at(cells, each)  # [S, R]
    found = np.empty((len(slots), len(rows)))
    with np.errstate(over="ignore"):
        for total, s in zip(found, slots.tolist(), strict=True):
            total[:] = 0.0
            for share in rates[:s] / rates[s - 1]:
                total += 1.0
                total *= share
    return np.minimum(found, _MOST_PATIENCE).T
