"""In which order `fingerprint_cpu.py` calibrates and runs whole models, so that a slow while meets both alike."""

import random
import time
from collections.abc import Callable, Sequence

from full_models import FullModel, Key, Replicas

from maveriq_profiler.run_probe import ItemRun

Tell = Callable[[str], None]
"""Where progress is said."""


async def all_at_once(
    items: Sequence[ItemRun], models: Sequence[FullModel], replicas: Replicas, rounds: int, tell: Tell
) -> float:
    """Everything is started, and all readings of a round come in random order: a slow while meets all alike.

    Returns seconds that calibrating took.
    """
    begun = time.perf_counter()
    for item in items:
        item.start()
    spent_s = time.perf_counter() - begun
    order = random.Random(0)
    for number in range(rounds):
        turns: list[tuple[ItemRun | FullModel, Key]] = [(item, turn) for item in items for turn in item.turns]
        turns += [(model, (split, p)) for model in models for split, points in model.splits.items() for p in points]
        order.shuffle(turns)
        for what, (split, point) in turns:
            if isinstance(what, FullModel):
                await replicas.read(what, split, point)
                continue
            begun = time.perf_counter()
            what.read((split, point))
            spent_s += time.perf_counter() - begun
        tell(f"round {number + 1} of {rounds}")
    for item in items:
        item.stop()
    return spent_s


async def one_by_one(
    items: Sequence[ItemRun], models: Sequence[FullModel], replicas: Replicas, rounds: int, tell: Tell
) -> float:
    """Where memory holds one at a time. Returns seconds that calibrating took."""
    spent_s = 0.0
    for item in items:
        begun = time.perf_counter()
        item.start()
        for _ in range(rounds):
            for turn in item.turns:
                item.read(turn)
        item.stop()
        spent_s += time.perf_counter() - begun
        tell("calibrated with one more")
    for model in models:
        for split, points in model.splits.items():
            for _ in range(rounds):
                for point in points:
                    await replicas.read(model, split, point)
            await replicas.stop(model, split)
            tell(f"{model.name} {split}")
        replicas.forget(model)
    return spent_s
