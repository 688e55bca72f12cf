"""A failure for memory is told from the others by what the engines say."""

import pytest

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
    "detail", ["the engine's process ended with -11", "this node has no GPU a/0", "no such folder", "device lost"]
)
def test_other_failures_are_not_taken_for_it(detail: str) -> None:
    assert not is_out_of_memory(detail)
