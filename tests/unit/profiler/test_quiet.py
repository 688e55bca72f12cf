"""Measurements that others disturb are noticed, repeated while patience lasts, and counted for what they are."""

import os
from collections.abc import Callable, Iterator
from math import exp
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maveriq.contracts import QUIET_SHARE, others_error
from maveriq_profiler.neighbours import CpuNeighbours, GpuLoad, GpuNeighbours, neighbours_of
from maveriq_profiler.quiet import Quiet
from maveriq_profiler.readings import Readings, Timed, counted


class Scripted:
    """Looks before a reading say nothing; those after it say what others took."""

    def __init__(self, *shares: float | None) -> None:
        self._looks: Iterator[float | None] = iter([look for share in shares for look in (0.0, share)])

    def look(self) -> float | None:
        return next(self._looks)


def quiet(*shares: float | None, patience_s: float = 10.0) -> Quiet:
    seconds = iter(range(1000))
    return Quiet(Scripted(*shares), patience_s, clock=lambda: float(next(seconds)), sleep=lambda _: None)


def readings(one: Quiet) -> int:
    count = 0
    while one.reads():
        count += 1
    return count


def test_a_disturbed_reading_is_made_again_until_one_is_quiet() -> None:
    one = quiet(0.6, 0.3, 0.01, 0.0)
    assert (readings(one), one.others) == (3, 0.01)
    assert (readings(one), one.others) == (1, 0.0)


def test_patience_is_of_all_readings_together_and_what_counts_then_says_how_disturbed_it_was() -> None:
    one = quiet(0.6, 0.5, 0.4, 0.3, patience_s=1.5)
    assert (readings(one), one.others) == (3, 0.4)
    assert (readings(one), one.others) == (1, 0.3)


def test_where_nobody_can_tell_a_reading_is_made_once() -> None:
    one = quiet(None)
    assert (readings(one), one.others) == (1, None)


def test_others_are_all_that_computes_on_any_core_save_those_who_measure(tmp_path: Path) -> None:
    stat, own = tmp_path / "stat", iter((100, 300))
    stat.write_text("cpu  1000 0 500 8000 100 0 0 0 0 0\ncpu0 1 1 1 1\n")
    neighbours = CpuNeighbours(lambda: next(own), stat)
    stat.write_text("cpu  1290 10 550 8580 120 0 0 50 0 0\n")  # of 1000 ticks 400 busy, 200 of these ours
    assert neighbours.look() == pytest.approx(0.198)  # two ticks less: they are counted apart


def test_a_machine_without_a_count_of_core_time_tells_nothing(tmp_path: Path) -> None:
    assert CpuNeighbours(lambda: 0, tmp_path / "none").look() is None


def test_this_machine_tells_how_much_others_take() -> None:
    share = neighbours_of("cpu").look()
    assert share is None or 0 <= share <= 1


class Nvml:
    """As pynvml: what each process takes of the one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, taken: Callable[[], dict[int, int]]) -> None:
        self._taken = taken

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetProcessUtilization(self, handle: int, since: int) -> list[Any]:
        return [SimpleNamespace(pid=pid, smUtil=util, timeStamp=since + 1) for pid, util in self._taken().items()]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=sum(self._taken().values()))


def test_on_a_gpu_the_other_processes_count_where_nvml_names_ours() -> None:
    ours = os.getpid()
    assert GpuNeighbours(Nvml(lambda: {ours: 60, 1_000_000_001: 25, 1_000_000_002: 5}), [0]).look() == 0.3
    assert GpuNeighbours(Nvml(lambda: {ours: 60}), [0]).look() == 0
    assert GpuNeighbours(Nvml(lambda: {1_000_000_001: 25}), [0]).look() is None  # of another namespace
    assert GpuLoad(Nvml(lambda: {1_000_000_001: 25}), [0]).look() == 0.25


def test_a_driver_that_does_not_tell_is_not_guessed_for() -> None:
    def refused() -> dict[int, int]:
        raise Nvml.NVMLError

    assert GpuNeighbours(Nvml(refused), [0]).look() is None
    assert GpuLoad(Nvml(refused), [0]).look() is None


def test_passes_whose_core_was_taken_away_do_not_count_where_others_are_enough() -> None:
    taken = [Timed(10.0, 10.0), Timed(60.0, 11.0), Timed(10.2, 10.1)]
    assert counted(taken, enough=2) == [10.0, 10.2]


def test_where_all_were_disturbed_their_time_on_the_core_counts() -> None:
    assert counted([Timed(60.0, 11.0), Timed(90.0, 12.0)], enough=1) == [11.0, 12.0]


def test_repeats_have_a_middle_and_a_spread_that_one_outlier_does_not_move() -> None:
    one = Readings()
    for ms, others in ((10.0, 0.0), (10.1, 0.1), (9.9, 0.02), (50.0, 0.9), (10.0, 0.0)):
        one.add([ms], [ms], others)
    figures = one.figures
    assert (figures["decode_ms"], figures["others"]) == (10.0, 0.02)
    assert figures["decode_spread"] == pytest.approx(0.0148, abs=1e-4)


def test_an_interval_reaches_to_what_is_left_when_others_took_their_share_of_the_time() -> None:
    assert exp(-1.645 * others_error(0.85)) == pytest.approx(0.15)
    assert others_error(QUIET_SHARE) == 0
