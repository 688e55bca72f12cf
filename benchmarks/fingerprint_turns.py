"""In which order `fingerprint_cpu.py` calibrates and runs whole models, so that a slow while meets both alike."""

import random
import time
from collections.abc import Callable, Sequence

from full_models import FullModel, Key, Replicas

from maveriq.contracts import RunSample
from maveriq_profiler.orders import ItemOrder
from maveriq_profiler.run_probe import ItemRun

Tell = Callable[[str], None]
"""Where progress is said."""
Calibrated = tuple[list[RunSample], float]
"""Samples, and the seconds that they took."""


async def all_at_once(
    orders: Sequence[ItemOrder], models: Sequence[FullModel], replicas: Replicas, rounds: int, tell: Tell
) -> Calibrated:
    """Each round starts everything anew and reads it in random order.

    A slow while meets all alike; and where a process's pages lie makes it faster or slower for as long as it lives.
    """
    samples: list[RunSample] = []
    spent_s = 0.0
    order = random.Random(0)
    for number in range(rounds):
        begun = time.perf_counter()
        items = [ItemRun(each) for each in orders]
        for item in items:
            item.start()
        spent_s += time.perf_counter() - begun
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
        await replicas.stop_all()
        begun = time.perf_counter()
        for item in items:
            item.stop()
            samples += item.samples()
        spent_s += time.perf_counter() - begun
        tell(f"round {number + 1} of {rounds}")
    return samples, spent_s


async def one_by_one(
    orders: Sequence[ItemOrder], models: Sequence[FullModel], replicas: Replicas, rounds: int, tell: Tell
) -> Calibrated:
    """Where memory holds one at a time: each is started once."""
    samples: list[RunSample] = []
    spent_s = 0.0
    for order in orders:
        begun = time.perf_counter()
        item = ItemRun(order)
        item.start()
        for _ in range(rounds):
            for turn in item.turns:
                item.read(turn)
        item.stop()
        samples += item.samples()
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
    return samples, spent_s
