"""A failure for memory is told from the others by what the engines say."""

from pathlib import Path

import pytest

from maveriq_worker.oom_kills import OomKills, ended
from maveriq_worker.out_of_memory import is_out_of_memory


@pytest.mark.parametrize(
    "detail",
    [
        "stage 1 needs 400 bytes for weights and KV cache, 300 bytes are reserved; give it fewer layers",
        "30 bytes of KV cache do not fit the 20 reserved for a stage",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "TensorRT-LLM did not start: Executor worker returned error: CUDA error: out of memory",
        "MemoryError: ",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
        "std::bad_alloc",
    ],
)
def test_each_engines_words_for_too_little_memory_are_known(detail: str) -> None:
    assert is_out_of_memory(detail)


@pytest.mark.parametrize(
    "detail",
    ["the engine's process was killed by signal 11", "this node has no GPU a/0", "no such folder", "device lost"],
)
def test_other_failures_are_not_taken_for_it(detail: str) -> None:
    assert not is_out_of_memory(detail)


def test_a_process_that_was_killed_while_the_kernel_killed_for_memory_failed_for_memory(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 7\noom_kill 3\n")
    kills = OomKills(vmstat)
    killed, aborted = (f"stage 1 {ended(code)}" for code in (-9, -6))
    assert kills.explained(killed) == killed == "stage 1 was killed by signal 9"
    vmstat.write_text("pgfault 9\noom_kill 4\n")
    assert is_out_of_memory(kills.explained(killed))
    assert kills.explained(aborted) == aborted


def test_where_the_kernel_does_not_count_nothing_is_guessed(tmp_path: Path) -> None:
    assert OomKills(tmp_path / "none").explained("stage 0 was killed by signal 9") == "stage 0 was killed by signal 9"
