"""A trace of requests. Pure: the text of a CSV file in, arrivals and token counts out.

Columns are known by name: those of the Azure LLM inference traces (TIMESTAMP, ContextTokens, GeneratedTokens; Patel et
al., Splitwise, ISCA 2024) and what others call the same. Times are dates or seconds.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from math import isfinite

import numpy as np

from maveriq.contracts.provisioning import ProvisioningRefused
from maveriq_planner.provisioning.problem import Array

FIELD = "trace"
_NAMES = {
    "arrival": ("timestamp", "arrival", "arrival_s", "arrived_at", "arrivaltime", "time", "time_s"),
    "prompt": ("contexttokens", "input_tokens", "prompt_tokens", "num_prefill_tokens", "inputtokens", "prompttokens"),
    "output": ("generatedtokens", "output_tokens", "completion_tokens", "num_decode_tokens", "outputtokens"),
}


@dataclass(frozen=True, slots=True)
class Trace:
    """N requests, in order of arrival."""

    arrival_s: Array  # [N]
    input_tokens: Array  # [N]
    output_tokens: Array  # [N]

    def rate_per_s(self, window_s: float | None) -> float:
        """Mean over the whole trace, or over its busiest stretch of so long."""
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        gaps = len(self.arrival_s) - 1
        if window_s is None or window_s >= span_s:
            return gaps / span_s
        ends = np.searchsorted(self.arrival_s, self.arrival_s + window_s, side="right")
        return float((ends - np.arange(len(ends))).max()) / window_s

    def within(self, context_tokens: int) -> "Trace":
        """Without requests that are longer, prompt and answer together."""
        keep = self.input_tokens + self.output_tokens <= context_tokens
        return Trace(self.arrival_s[keep], self.input_tokens[keep], self.output_tokens[keep])


def read_trace(text: str) -> Trace:
    """Raises ProvisioningRefused."""
    rows = csv.reader(StringIO(text.removeprefix("\ufeff")))
    header = next(rows, None)
    if not header:
        raise ProvisioningRefused(FIELD, "is empty", "give a CSV file with a header")
    columns = _columns(header)
    found: list[tuple[float, float, float]] = []
    for number, row in enumerate(rows, start=2):
        if row:
            found.append(_request(row, columns, number))
    if len(found) < 2:
        raise ProvisioningRefused(FIELD, f"has {len(found)} requests", "give two at least: their distance is the rate")
    table = np.array(found)
    table = table[np.argsort(table[:, 0], kind="stable")]
    if table[-1, 0] <= table[0, 0]:
        raise ProvisioningRefused(FIELD, "all its requests arrive at once", "give arrival times that differ")
    return Trace(table[:, 0], table[:, 1], table[:, 2])


def _columns(header: Sequence[str]) -> tuple[int, int, int]:
    spelled = [name.strip().lower() for name in header]
    at: list[int] = []
    for what, names in _NAMES.items():
        place = next((spelled.index(name) for name in names if name in spelled), None)
        if place is None:
            raise ProvisioningRefused(
                FIELD, f"no column says the {what} {'time' if what == 'arrival' else 'tokens'}: {', '.join(header)}",
                f"name one of them {_listed(names)}",
            )  # fmt: skip
        at.append(place)
    return at[0], at[1], at[2]


def _request(row: Sequence[str], columns: tuple[int, int, int], line: int) -> tuple[float, float, float]:
    try:
        arrival, prompt, output = (row[column].strip() for column in columns)
        found = _seconds(arrival), float(prompt), float(output)
    except (ValueError, IndexError) as error:
        raise ProvisioningRefused(FIELD, f"line {line} is no request: {','.join(row)!r}", "correct it") from error
    if not (found[1] > 0 and found[2] >= 0) or not all(map(isfinite, found)):
        raise ProvisioningRefused(FIELD, f"line {line} counts {prompt} prompt and {output} output tokens", "correct it")
    return found[0], found[1], max(found[2], 1.0)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"
