"""How good a variant is beside full precision. Pure: what each says of a text's tokens in, figures out.

The text is read in overlapping windows, so that every token but the first ones has at least half a window before it
(https://huggingface.co/docs/transformers/perplexity). Each token is scored once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, isfinite

from maveriq.contracts import BYTES_PER_ELEMENT, ModelFacts, Precision, VariantAccuracy

WINDOW_TOKENS = 1024
PART_TOKENS = 512  # read at once to try single layers, of which every output is kept; as many as the engine's prefill
MIN_TOKENS = 16
_WORKSPACE = 1.1  # of the weights: what loading and the allocator take beside them
_LARGEST_MEAN_NLL = 100.0  # guessing evenly among a million tokens is 14; beyond this nothing was computed


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens begin..end of the text are read; of them the last `num_scored` are predicted."""

    begin: int
    end: int
    num_scored: int


@dataclass(slots=True)
class Score:
    """What one model says of the scored tokens, in their order."""

    nll: float = 0.0
    """Negative log likelihood of them all, in nats."""
    predicted: list[int] = field(default_factory=list[int])
    """Its most likely token at each position."""

    def add(self, nll: float, predicted: Sequence[int]) -> None:
        self.nll += nll
        self.predicted.extend(predicted)

    @property
    def mean_nll(self) -> float:
        return self.nll / len(self.predicted)


def windows(num_tokens: int, context_tokens: int) -> tuple[Window, ...]:
    """The first token alone is never scored."""
    width = min(WINDOW_TOKENS, context_tokens)
    end = min(width, num_tokens)
    found = [Window(0, end, end - 1)]
    while end < num_tokens:
        done, end = end, min(end + width // 2, num_tokens)
        found.append(Window(end - width, end, end - done))
    return tuple(found)


def compared(label: str, score: Score, reference: Score) -> VariantAccuracy:
    """A variant beside full precision on the same tokens."""
    if not isfinite(score.nll) or score.mean_nll > _LARGEST_MEAN_NLL:
        return VariantAccuracy(variant=label, problem=f"{label}: what it computes are no probabilities (overflow)")
    same = sum(ours == theirs for ours, theirs in zip(score.predicted, reference.predicted, strict=True))
    return VariantAccuracy(
        variant=label,
        perplexity=exp(score.mean_nll),
        agreement=same / len(score.predicted),
        relative=exp(reference.mean_nll - score.mean_nll),
    )


def needed_bytes(facts: ModelFacts, precision: Precision, *, kept_tokens: int = 0) -> int:
    """To run the model over one window, weights loaded.

    Args:
        kept_tokens: of which every layer's output is kept.
    """
    ends = facts.embedding_params + (0 if facts.tied_embeddings else facts.lm_head_params)
    params = facts.num_layers * facts.layer_params + ends
    width = BYTES_PER_ELEMENT[precision]
    logits = WINDOW_TOKENS * facts.vocab_size * width
    layer = WINDOW_TOKENS * (8 * facts.hidden_size + 3 * facts.intermediate_size) * width
    kept = kept_tokens * facts.num_layers * facts.hidden_size * width
    return int(params * width * _WORKSPACE + 2 * logits + layer + kept)
