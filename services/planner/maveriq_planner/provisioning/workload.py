"""A workload as buckets of like requests. Pure: a trace or a histogram in, sizes and rates out.

Edges chosen from a trace cut its tokens, not its requests, into equal parts: every bucket of an axis holds as much of
the load, so the few long requests that most of it comes from are told apart finely, and the many short ones are not.
A bucket's size is the mean of its own requests, whose cost is near enough linear in tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from maveriq.contracts.provisioning import Histogram
from maveriq_planner.provisioning.problem import Array
from maveriq_planner.provisioning.traces import Trace


@dataclass(frozen=True, slots=True)
class Demand:
    """Buckets that requests fall into, of I x J that there could be."""

    place: tuple[tuple[int, int], ...]
    """Row and column of each bucket."""
    input_up_to: Array  # [B]
    output_up_to: Array  # [B]
    input_tokens: Array  # [B], of its mean request
    output_tokens: Array  # [B]
    rate_per_s: Array  # [B]
    notes: tuple[str, ...] = ()

    @property
    def total_per_s(self) -> float:
        return float(self.rate_per_s.sum())

    def at(self, rate_per_s: float) -> "Demand":
        """The same mix at another rate."""
        return replace(self, rate_per_s=self.rate_per_s * (rate_per_s / self.total_per_s))

    def within(self, context_tokens: int) -> "Demand":
        """Buckets whose longest request is longer than a model takes count as the longest that it takes."""
        shrink = np.minimum(1.0, context_tokens / (self.input_tokens + self.output_tokens + 2))  # 2: rounded up later
        if (shrink == 1).all():
            return self
        note = f"buckets of more than the model's {context_tokens:,} tokens count as the longest that it takes"
        return replace(
            self, input_tokens=self.input_tokens * shrink, output_tokens=self.output_tokens * shrink,
            notes=(*self.notes, note),
        )  # fmt: skip


def edges_of(tokens: Array, most: int) -> tuple[float, ...]:
    """At most so many edges, the last the longest of all: whole tokens at which equal parts of all tokens end."""
    ordered = np.sort(tokens)
    reached = np.cumsum(ordered)
    parts: Array = np.linspace(0.0, float(reached[-1]), most + 1)[1:]
    at = np.minimum(np.searchsorted(reached, parts * (1 - 1e-12)), len(ordered) - 1)
    return tuple(float(edge) for edge in np.unique(ordered[at]))


def demand_of_trace(
    trace: Trace, input_edges: Sequence[float], output_edges: Sequence[float], rate_per_s: float
) -> Demand:
    """Requests longer than the last edge fall into the last bucket, and count there as often as they are longer."""
    rows = np.searchsorted(input_edges, trace.input_tokens)
    columns = np.searchsorted(output_edges, trace.output_tokens)
    beyond = np.maximum(trace.input_tokens / input_edges[-1], trace.output_tokens / output_edges[-1])
    weight = np.maximum(beyond, 1.0)
    over = int((beyond > 1).sum())
    rows, columns = np.minimum(rows, len(input_edges) - 1), np.minimum(columns, len(output_edges) - 1)
    which = rows * len(output_edges) + columns
    size = len(input_edges) * len(output_edges)
    weights = np.bincount(which, weights=weight, minlength=size)
    counts = np.bincount(which, minlength=size)
    inputs = np.bincount(which, weights=trace.input_tokens, minlength=size)
    outputs = np.bincount(which, weights=trace.output_tokens, minlength=size)
    used = np.flatnonzero(counts)
    note = (
        f"{over} of {len(which)} requests are longer than the last edge: each counts as often in the last bucket "
        "as it is longer",
    )
    return Demand(
        place=tuple((int(i) // len(output_edges), int(i) % len(output_edges)) for i in used),
        input_up_to=np.asarray(input_edges)[used // len(output_edges)],
        output_up_to=np.asarray(output_edges)[used % len(output_edges)],
        input_tokens=inputs[used] / counts[used],
        output_tokens=outputs[used] / counts[used],
        rate_per_s=rate_per_s * weights[used] / len(which),
        notes=note if over else (),
    )


def demand_of_histogram(histogram: Histogram) -> Demand:
    """A bucket's requests count as its longest: how long they are within it is not told."""
    shares = np.array(histogram.distribution)
    return demand_of_matrix(
        shares / shares.sum() * histogram.request_rate_per_s, histogram.input_edges, histogram.output_edges
    )


def demand_of_matrix(rates: Array, input_edges: Sequence[float], output_edges: Sequence[float]) -> Demand:
    """
    Args:
        rates: [I, J], requests a second.
    """
    rows, columns = np.nonzero(rates > 0)
    inputs, outputs = np.asarray(input_edges, dtype=float)[rows], np.asarray(output_edges, dtype=float)[columns]
    place = tuple(zip(rows.tolist(), columns.tolist(), strict=True))
    return Demand(place, inputs, outputs, inputs, outputs, rates[rows, columns])
