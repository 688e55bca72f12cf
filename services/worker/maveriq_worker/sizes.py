"""How long requests and their answers are. Pure: one after the other in, a bounded number of kinds out.

A kind is half an octave of prompt and half an octave of answer.
"""

from dataclasses import dataclass
from math import log2

from maveriq.contracts import ServedRequests

MAX_KINDS = 64  # said at once; `ServiceTimed` takes no more


@dataclass(slots=True)
class _Kind:
    count: int = 0
    input_tokens: int = 0
    """Of all of them together."""
    output_tokens: int = 0

    def add(self, count: int, input_tokens: int, output_tokens: int) -> None:
        self.count += count
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    def told(self) -> ServedRequests:
        return ServedRequests(
            input_tokens=max(1, round(self.input_tokens / self.count)),
            output_tokens=max(1, round(self.output_tokens / self.count)), count=self.count,
        )  # fmt: skip


class Sizes:
    """Of the requests that one replica answered since they were last taken."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, int], _Kind] = {}

    def add(self, input_tokens: int, output_tokens: int) -> None:
        key = _half_octave(input_tokens), _half_octave(output_tokens)
        self._kinds.setdefault(key, _Kind()).add(1, input_tokens, output_tokens)

    def take(self) -> tuple[ServedRequests, ...]:
        """Those that came most often, the rest as one kind of their mean; and forget all."""
        kinds = sorted(self._kinds.values(), key=lambda kind: kind.count, reverse=True)
        self._kinds = {}
        for other in kinds[MAX_KINDS:]:
            kinds[MAX_KINDS - 1].add(other.count, other.input_tokens, other.output_tokens)
        return tuple(kind.told() for kind in kinds[:MAX_KINDS])


def _half_octave(tokens: int) -> int:
    return round(2 * log2(max(1, tokens)))
