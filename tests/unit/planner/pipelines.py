"""Small pipelines, drawn by chance or written down, and all splits of them."""

from collections.abc import Iterator
from itertools import combinations, pairwise, product
from random import Random

import numpy as np

from maveriq_planner.quantizing.pipeline import Pipeline, Split, Stage, Weights, cost, faults


def drawn(seed: int, num_stages: int, num_layers: int = 5, num_precisions: int = 3) -> Pipeline:
    """Bytes that make precisions compete, GPUs of which some are equal, weights of every kind."""
    random = Random(f"{seed}/{num_stages}")
    layer_bytes = tuple(float(random.randint(3, 20)) for _ in range(num_precisions))
    kinds = [_stage(random, num_layers, num_stages, layer_bytes) for _ in range(2)]
    sensitivity = np.array([[random.random() for _ in range(num_precisions)] for _ in range(num_layers)])
    steps = random.choice([0.0, 7.0])
    weights = Weights(
        prefill_longest=random.choice([0.0, 3.0]), decode_longest=0.0 if steps else random.choice([0.0, 9.0]),
        steps=steps, groups=random.choice([1, 2, 3]), theta=random.choice([0.0, 5.0, 40.0]),
        scale=random.choice([1.0, 0.25]),
    )  # fmt: skip
    stages = tuple(random.choice(kinds) for _ in range(num_stages))
    return Pipeline(stages, weights, sensitivity, 1, 1, uniform_stages=random.random() < 0.2)


def _stage(random: Random, num_layers: int, num_stages: int, layer_bytes: tuple[float, ...]) -> Stage:
    def times() -> tuple[float, ...]:
        return tuple(random.choice([random.uniform(1, 9), 4.0]) for _ in layer_bytes)

    share = num_layers / num_stages * sum(layer_bytes) / len(layer_bytes)
    prefill, decode = times(), times()
    if random.random() < 0.2:
        decode = (float("inf"), *decode[1:])
    return Stage(
        f"gpu{random.random():.3f}", random.uniform(0.8, 1.8) * share, layer_bytes, prefill, decode,
        random.choice([0.0, 3.0]), random.choice([0.0, 2.0]), random.choice([0.0, 9.0]), random.choice([0.0, 9.0]),
    )  # fmt: skip


def splits(pipeline: Pipeline) -> Iterator[Split]:
    """All that can be run."""
    total, num_precisions = pipeline.sensitivity.shape
    for cuts in combinations(range(1, total), len(pipeline.stages) - 1):
        ends = (0, *cuts, total)
        numbers = tuple(end - start for start, end in pairwise(ends))
        for precisions in product(range(num_precisions), repeat=total):
            split = Split(numbers, precisions)
            if not faults(pipeline, split):
                yield split


def optimum(pipeline: Pipeline, most_sensitivity: float = np.inf) -> float | None:
    """None: nothing can be run, or nothing that loses so little."""
    costs = (cost(pipeline, split) for split in splits(pipeline))
    return min((each.objective for each in costs if each.sensitivity <= most_sensitivity), default=None)
