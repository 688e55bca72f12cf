"""Peak bytes that a computation takes beyond what was allocated before it."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Of torch's allocator: on a CPU from its own records of each allocation, so the interpreter is not counted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - before)
    recorded: Any = profile(profile_memory=True, use_kineto=True)
    with recorded:
        run()
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted((int(event.start_ns()), int(event.nbytes())) for event in events):
        held += change
        peak = max(peak, held)
    return peak
