"""Values between the points of a grid, for many rows at once. Pure: grid, values and places in, values out."""

from dataclasses import dataclass

import numpy as np

from maveriq_planner.arrays import Array, Indices


@dataclass(frozen=True, slots=True)
class Grid:
    points: Array  # [G], whole numbers, ascending from 1; at least two
    cell: Indices  # [largest + 1]
    """By the whole number at or below a place: which points it lies between, counted from 0."""

    @property
    def cells(self) -> int:
        return len(self.points) - 1


@dataclass(frozen=True, slots=True)
class Lines:
    """Linear between the points of a grid: intercept + slope x, flat over rows and cells."""

    intercept: Array  # [R * cells]
    slope: Array  # [R * cells]

    def at(self, cells: Indices, x: Array) -> Array:
        """
        Args:
            cells: row x number of cells + cell.
        """
        values = self.slope.take(cells)
        values *= x
        values += self.intercept.take(cells)
        return values


def grid_of(points: Array) -> Grid:
    numbers = np.arange(int(points[-1]) + 1)
    cell = np.clip(np.searchsorted(points, numbers, side="right") - 1, 0, len(points) - 2)
    return Grid(points, cell.astype(np.intp))


def lines_of(grid: Grid, values: Array) -> Lines:
    """values: [R, G]"""
    slope = np.diff(values, axis=1) / np.diff(grid.points)
    intercept = values[:, :-1] - slope * grid.points[:-1]
    return Lines(intercept.ravel(), slope.ravel())
