"""Which cut models, batches and prompts are measured. Pure: limits and facts in, grid out.

The planner fits ends(b) + layers * layer(b) to decode steps: several layer counts at each batch tell the two apart,
and two prompt lengths at one batch tell attention from weights. Not the full cross product: it would cost minutes.
"""

from dataclasses import dataclass

from pydantic import Field

from maveriq.contracts import ModelFacts, Value


class Point(Value):
    """One shape at which every cut model is run."""

    batch: int = Field(gt=0)
    input_tokens: int = Field(gt=0)


class Grid(Value):
    layers: tuple[int, ...] = Field(min_length=1, description="Ascending.")
    points: tuple[Point, ...] = Field(min_length=2)
    output_tokens: int = Field(gt=1, description="Decode steps of a run.")
    min_rounds: int = Field(gt=0)
    budget_s: float = Field(gt=0, description="No further round is begun after this.")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator lets a measurement cost."""

    layers: tuple[int, ...]
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    output_tokens: int
    budget_s: float
    cut_bytes: int
    """Most bytes of weights that a cut model may have, its ends aside."""


def grid_for(limits: Limits, facts: ModelFacts, bytes_per_param: float) -> Grid:
    """Every batch with the shortest prompt; longer ones with the smallest, the second with a middle one too."""
    most = max(2, int(limits.cut_bytes / (facts.layer_params * bytes_per_param)))
    counts = sorted({min(n, facts.num_layers, most) for n in limits.layers})
    longest = max(1, facts.max_context_tokens - limits.output_tokens)
    prompts = sorted({min(tokens, longest) for tokens in limits.prompts})
    batches = sorted(set(limits.batches))
    shapes = [(batch, prompts[0]) for batch in batches]
    shapes += [(batches[0], tokens) for tokens in prompts[1:]]
    if len(prompts) > 1 and len(batches) > 1:
        shapes.append((batches[len(batches) // 2], prompts[1]))
    return Grid(
        layers=tuple(counts),
        points=tuple(Point(batch=batch, input_tokens=tokens) for batch, tokens in shapes),
        output_tokens=limits.output_tokens,
        min_rounds=2,
        budget_s=limits.budget_s,
    )
