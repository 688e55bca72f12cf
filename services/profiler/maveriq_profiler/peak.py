"""Bytes of a device: what a process takes before any tensor, and a computation beyond what was there before."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

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


def runtime_bytes(device: torch.device) -> int:
    """What the process takes of a GPU before any tensor: context, kernels, the GEMM library's workspace. CPU: 0."""
    if device.type != "cuda":
        return 0
    nvml: Any = import_module("pynvml")
    nvml.nvmlInit()
    uuid = str(cast(Any, torch.cuda).get_device_properties(device).uuid)
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    before = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    one = torch.ones((64, 64), device=device)
    (one @ one).sum().item()
    taken = int(nvml.nvmlDeviceGetMemoryInfo(handle).used) - before
    return max(0, taken - torch.cuda.memory_reserved(device))
