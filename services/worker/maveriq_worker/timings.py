"""What passes take, by kind. Pure: one pass after another in, medians of a bounded number of kinds out.

A pass is what the law predicts: a decode step of some requests together, or the reading of some prompts to their first
tokens, through all stages, with the engine to itself.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log2
from statistics import fmean, median

from maveriq.contracts import ServedTime

MAX_KINDS = 32  # said at once; `ServiceTimed` takes no more
_KEPT_KINDS = 4 * MAX_KINDS
_KEPT_PASSES = 64  # of one kind: the latest, for its median
_LEAST_TOKENS = 4  # of an answer whose mean step is taken for one step


@dataclass(frozen=True, slots=True)
class Passed:
    """One pass that had the engine to itself."""

    prompts: bool
    """It read prompts to their first tokens; else it was a decode step."""
    batch: int
    input_tokens: float
    """Prompt of each: of those read, with what they are padded to; of a decode step's requests the mean."""
    output_tokens: float
    """Answer of each before the pass, the mean; of prompts the first token alone."""
    ms: float


@dataclass(slots=True)
class _Kind:
    count: int = 0
    latest: deque[Passed] = field(default_factory=lambda: deque[Passed](maxlen=_KEPT_PASSES))


class Timings:
    """Of one replica since they were last taken."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[bool, int, int], _Kind] = {}

    def add(self, passed: Passed) -> None:
        """A kind is a batch and half an octave of tokens. Kinds beyond those kept wait until these are taken."""
        tokens = passed.input_tokens if passed.prompts else passed.input_tokens + passed.output_tokens
        key = (passed.prompts, passed.batch, round(2 * log2(max(1.0, tokens))))
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _KEPT_KINDS:
                return
            kind = self._kinds[key] = _Kind()
        kind.count += 1
        kind.latest.append(passed)

    def take(self) -> tuple[ServedTime, ...]:
        """The kinds that ran most, and forget all."""
        kinds = sorted(self._kinds.values(), key=lambda kind: kind.count, reverse=True)[:MAX_KINDS]
        self._kinds = {}
        return tuple(_served(kind.count, kind.latest) for kind in kinds)


class SoloClock:
    """Times a request that has the engine to itself, where steps cannot be seen: its first token, its mean step."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._first_s: float | None = None
        self._num_tokens = 0

    def produced(self, num_tokens: int, prompt_tokens: int, at_s: float, *, last: bool) -> Passed | None:
        """Some tokens came."""
        self._num_tokens += num_tokens
        if self._first_s is None:
            self._first_s = at_s
            whole = num_tokens == 1 and prompt_tokens > 0
            return Passed(True, 1, prompt_tokens, 1, (at_s - self._began_s) * 1e3) if whole else None
        if not last or self._num_tokens < _LEAST_TOKENS:
            return None
        step_ms = (at_s - self._first_s) * 1e3 / (self._num_tokens - 1)
        return Passed(False, 1, prompt_tokens, self._num_tokens / 2, step_ms)


def _served(count: int, passes: Sequence[Passed]) -> ServedTime:
    ms = median(each.ms for each in passes)
    prompts = passes[0].prompts
    return ServedTime(
        batch=passes[0].batch,
        input_tokens=max(1, round(fmean(each.input_tokens for each in passes))),
        output_tokens=max(1, round(fmean(each.output_tokens for each in passes))),
        prefill_ms=ms if prompts else None,
        decode_ms=None if prompts else ms,
        count=count,
    )
