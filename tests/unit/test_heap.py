"""A process keeps what it freed, so that the next pass finds it. Told in a fork, for no process can forget it."""

import ctypes
import os
import resource

import pytest

from maveriq.torch_layers import keep_freed_memory

PIECES, PIECE_BYTES = 8, 2_400_000  # as a prompt's activations


def one_pass() -> int:
    """Pages that the system had to give."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    taken = [bytearray(PIECE_BYTES) for _ in range(PIECES)]
    del taken
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_a_second_pass_takes_no_new_pages() -> None:
    pid = os.fork()
    if pid == 0:
        keep_freed_memory()
        one_pass()
        os._exit(min(100, one_pass()))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) < 100
