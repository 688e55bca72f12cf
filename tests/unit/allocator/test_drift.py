"""A GPU whose memory is not as reserved is told from one that is; the driver's own rounding is no drift."""

import pytest

from maveriq.contracts import Gpu
from maveriq_allocator.drift import SLACK_BYTES, drift

GIB = 2**30


def drifted(own: int | None, foreign: int = 0, held: int = 10 * GIB) -> str | None:
    gpu = Gpu(id="g", gpu_type="T4", total_bytes=16 * GIB, foreign_bytes=foreign, own_bytes=own)
    return drift(gpu, held)


@pytest.mark.parametrize("own", [None, 0, 10 * GIB, 10 * GIB + SLACK_BYTES])
def test_what_takes_at_most_what_was_reserved_has_not_drifted(own: int | None) -> None:
    assert drifted(own) is None


def test_our_processes_beyond_what_was_reserved_have() -> None:
    told = drifted(12 * GIB)
    assert told is not None
    assert "take 12.0 GiB, 2.0 GiB more than the 10.0 GiB reserved" in told


def test_processes_left_behind_where_nothing_is_reserved_have() -> None:
    assert drifted(GIB, held=0) is not None


def test_others_that_take_what_was_reserved_have() -> None:
    told = drifted(10 * GIB, foreign=7 * GIB)
    assert told is not None
    assert "not ours take 7.0 GiB of 16.0 GiB" in told


def test_others_alone_on_a_gpu_are_no_drift() -> None:
    assert drifted(None, foreign=16 * GIB, held=0) is None
