"""Traffic by the sizes of its requests."""

from itertools import pairwise
from typing import Self

from pydantic import Field, model_validator

from maveriq.contracts.message import DoorValue

Matrix = tuple[tuple[float, ...], ...]
MAX_TOKENS = 10_000_000  # no model reads more; a larger number is a typo


class Histogram(DoorValue):
    """A workload by the sizes of its requests."""

    input_edges: tuple[float, ...] = Field(
        min_length=1, description="Longest prompt of each row, in tokens, ascending."
    )
    output_edges: tuple[float, ...] = Field(min_length=1, description="Longest answer of each column.")
    distribution: Matrix = Field(description="Share of the requests in each bucket; all together 1.")
    request_rate_per_s: float = Field(gt=0, le=1e9)

    @model_validator(mode="after")
    def _is_a_distribution(self) -> Self:
        check_edges("input_edges", self.input_edges)
        check_edges("output_edges", self.output_edges)
        check_shape("distribution", self.distribution, len(self.input_edges), len(self.output_edges))
        check_distribution("distribution", self.distribution)
        return self

    @property
    def buckets(self) -> tuple[tuple[float, float, float], ...]:
        """Longest prompt, longest answer and share of each bucket that has requests."""
        rows = zip(self.input_edges, self.distribution, strict=True)
        return tuple(
            (input_up_to, output_up_to, share)
            for input_up_to, row in rows
            for output_up_to, share in zip(self.output_edges, row, strict=True)
            if share > 0
        )


def check_shape(field: str, matrix: Matrix, rows: int, columns: int) -> None:
    """Raises ValueError where it is not rows x columns."""
    if len(matrix) != rows:
        raise ValueError(f"{field}: has {len(matrix)} rows, of {rows} input buckets")
    for number, row in enumerate(matrix):
        if len(row) != columns:
            raise ValueError(f"{field}.{number}: has {len(row)} numbers, of {columns} output buckets")


def check_distribution(field: str, matrix: Matrix, *, whole: bool = True) -> None:
    """Raises ValueError where shares are negative or, all together, not 1."""
    if any(share < 0 for row in matrix for share in row):
        raise ValueError(f"{field}: no share may be negative")
    total = sum(share for row in matrix for share in row)
    if total <= 0:
        raise ValueError(f"{field}: is empty")
    if whole and abs(total - 1) > 1e-3:
        raise ValueError(f"{field}: sums to {total:.6g}, not to 1")


def check_edges(field: str, edges: tuple[float, ...] | None) -> None:
    """Raises ValueError where they are not lengths, ascending."""
    if edges is not None and (edges[:1] <= (0,) or any(b <= a for a, b in pairwise(edges)) or max(edges) > MAX_TOKENS):
        raise ValueError(f"{field}: no ascending lengths; give numbers up to {MAX_TOKENS}, each above the one before")
