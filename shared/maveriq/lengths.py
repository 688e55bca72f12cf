"""How long a deployment's requests are, as somebody without a tokenizer can tell. Pure: answers in, sizes out.

Characters a token and tokens an answer are running means of what the deployment's own usage figures said, begun with a
prior: 4 characters a token (English in a BPE of 32 to 128 thousand entries), and for answers what was planned.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from maveriq.contracts import FinishReason, RequestSubmitted, Route, Usage

CHARS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 4  # that a chat's template adds to each message: role and delimiters
PRIOR_TOKENS = 256.0  # that the prior counts as
PRIOR_ANSWERS = 4.0
MEMORY_TOKENS = 200_000.0  # and older ones count half: traffic changes
MEMORY_ANSWERS = 1_000.0


@dataclass(frozen=True, slots=True)
class Size:
    input_tokens: float
    output_tokens: float


@dataclass(slots=True)
class Mean:
    """A running mean that forgets: what is older than its memory counts half, again and again."""

    total: float
    weight: float
    memory: float

    @property
    def value(self) -> float:
        return self.total / self.weight

    def add(self, total: float, weight: float) -> None:
        if self.weight + weight > self.memory:
            self.total, self.weight = self.total / 2, self.weight / 2
        self.total, self.weight = self.total + total, self.weight + weight


@dataclass(slots=True)
class Lengths:
    """What one deployment's answers have shown so far."""

    _chars_per_token: Mean = field(
        default_factory=lambda: Mean(CHARS_PER_TOKEN * PRIOR_TOKENS, PRIOR_TOKENS, MEMORY_TOKENS)
    )
    _edges: tuple[float, ...] = ()
    """Longest prompt of each class of like prompts."""
    _answers: list[Mean] = field(default_factory=list[Mean])

    def plan_for(self, routes: Sequence[Route]) -> None:
        """Begin anew where prompts are classed otherwise than before."""
        edges = tuple(sorted({one.input_up_to for one in routes}))
        if edges != self._edges:
            self._edges, self._answers = edges, [_planned(routes, edge) for edge in edges]

    def size(self, request: RequestSubmitted) -> Size:
        """The request's size, as estimated."""
        chars, known = _chars(request)
        input_tokens = known + chars / self._chars_per_token.value
        sampling = request.sampling
        if sampling.ignore_eos and sampling.max_tokens is not None:
            return Size(input_tokens, float(sampling.max_tokens))
        likely = self._like(input_tokens).value if self._answers else float("inf")
        most = float("inf") if sampling.max_tokens is None else float(sampling.max_tokens)
        return Size(input_tokens, min(likely, most))

    def learn(self, request: RequestSubmitted, usage: Usage, finish_reason: FinishReason | None) -> None:
        """What an answer showed. One that was broken off says nothing of how long answers are."""
        chars, known = _chars(request)
        tokens = usage.prompt_tokens - known
        if chars > 0 and tokens > 0:
            self._chars_per_token.add(chars, tokens)
        if self._answers and finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._like(usage.prompt_tokens).add(usage.completion_tokens, 1.0)

    def _like(self, input_tokens: float) -> Mean:
        return self._answers[min(bisect_left(self._edges, input_tokens), len(self._edges) - 1)]


def _planned(routes: Sequence[Route], edge: float) -> Mean:
    alike = [one for one in routes if one.input_up_to == edge]
    share = sum(one.share for one in alike)
    mean = sum(one.share * one.output_up_to for one in alike) / share if share else alike[-1].output_up_to
    return Mean(mean * PRIOR_ANSWERS, PRIOR_ANSWERS, MEMORY_ANSWERS)


def _chars(request: RequestSubmitted) -> tuple[int, int]:
    """Characters whose tokens are not known, and tokens that are."""
    if isinstance(request.prompt, str):
        return len(request.prompt), 0
    if request.prompt is not None:
        return 0, len(request.prompt)
    messages = request.messages or ()
    return sum(len(message.content) for message in messages), TEMPLATE_TOKENS * len(messages)
