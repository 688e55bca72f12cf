"""Stages share a core while one micro-batch is under way, are free otherwise, and are never held there for long."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from maveriq.torch_layers import StageCore

Answer = TypeVar("Answer")

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)


def elsewhere(call: Callable[[], Answer]) -> Answer:
    """In a thread of its own, whose core is its own affair."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def led(core: StageCore, *, alone: bool) -> int | None:
    core.before(alone=alone)
    return core.after(alone=alone)


def test_a_lone_micro_batch_is_computed_on_one_core_by_all_stages() -> None:
    def chain() -> tuple[set[int], set[int]]:
        first, second = StageCore(movable=True), StageCore(movable=True)
        shared = led(first, alone=True)
        kept = os.sched_getaffinity(0)
        second.follow(shared)
        return kept, os.sched_getaffinity(0)

    leads, follows = elsewhere(chain)
    assert len(leads) == 1
    assert follows == leads


def test_stages_are_free_as_soon_as_two_micro_batches_are_under_way() -> None:
    def chain() -> tuple[int | None, set[int]]:
        core = StageCore(movable=True)
        led(core, alone=True)
        return led(core, alone=False), os.sched_getaffinity(0)

    assert elsewhere(chain) == (None, os.sched_getaffinity(0))


def test_now_and_then_the_system_may_choose_another_core() -> None:
    def computed() -> list[int]:
        core, cores = StageCore(movable=True), list[int]()
        for _ in range(40):
            core.before(alone=True)
            cores.append(len(os.sched_getaffinity(0)))
            core.after(alone=True)
        return cores

    free = [number for number, cores in enumerate(elsewhere(computed)) if cores > 1]
    assert free == [0, 16, 32]


def test_a_core_that_cannot_be_had_leaves_the_stage_free() -> None:
    def follow() -> set[int]:
        StageCore(movable=True).follow(10**6)
        return os.sched_getaffinity(0)

    assert elsewhere(follow) == os.sched_getaffinity(0)


def test_stages_of_several_threads_and_on_gpus_stay_where_they_are() -> None:
    def chain() -> tuple[int | None, set[int]]:
        core = StageCore(movable=False)
        core.follow(0)
        return led(core, alone=True), os.sched_getaffinity(0)

    assert elsewhere(chain) == (None, os.sched_getaffinity(0))
