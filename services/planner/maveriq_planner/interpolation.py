"""Values between the points of a grid, for many rows at once. Pure: grid, values and points in, values out."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def between(grid: Array, values: Array, at: Array) -> Array:
    """values [C, G] at one point of each row, `at` [C]: linear, the ends' beyond them."""
    return at_points(place(grid, at), values)


Places = tuple[NDArray[np.intp], Array]
"""Flat indices of the grid's points before, and how far towards the next."""


def place(grid: Array, at: Array) -> Places:
    j = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, max(0, len(grid) - 2))
    left = grid[j]
    width = grid[np.minimum(j + 1, len(grid) - 1)] - left
    share = np.clip((at - left) / np.where(width > 0, width, 1.0), 0.0, 1.0)
    return np.arange(len(at)) * len(grid) + j, share


def at_points(places: Places, values: Array) -> Array:
    before, share = places
    low = values.ravel()[before]
    if values.shape[1] == 1:
        return low
    interpolated: Array = low + share * (values.ravel()[before + 1] - low)
    return interpolated


def between_all(grid: Array, values: Array, at: Array) -> Array:
    """values [C, G] at the same points of each row: [C, len(at)]."""
    if len(grid) == 1:
        return np.repeat(values, len(at), axis=1)
    j = np.clip(np.searchsorted(grid, at, side="right"), 1, len(grid) - 1)
    share = np.clip((at - grid[j - 1]) / (grid[j] - grid[j - 1]), 0.0, 1.0)
    found: Array = values[:, j - 1] * (1 - share) + values[:, j] * share
    return found
