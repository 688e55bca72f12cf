"""Whether an engine failed for memory. Pure: its words in, yes or no out.

Engines fail in processes of their own, and what comes back is text: their own checks against the reservation, the
allocator of CUDA or of the system, or a library's words for either.
"""

import re

_WORDS = re.compile(
    r"out of memory"  # torch (CUDA out of memory), CUDA's own error string, TensorRT-LLM and NCCL, which pass it on
    r"|OutOfMemory"  # torch.OutOfMemoryError, TensorRT's OutOfMemory
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"
    r"|MemoryError|bad_alloc|can't allocate memory|[Cc]annot allocate memory"  # Python, C++, torch on CPUs, the kernel
    r"|bytes are reserved"  # the torch engine's check
    r"|reserved for a stage"  # the TensorRT-LLM engine's check
    r"|not enough (GPU )?memory|[Ii]nsufficient memory"  # TensorRT-LLM's checks of its KV cache pool
)


def is_out_of_memory(detail: str) -> bool:
    return _WORDS.search(detail) is not None
