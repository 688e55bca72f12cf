"""How long one token's activations take to the next stage: ping-pong between two processes over torch.distributed."""

import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

_ROUND_TRIPS = 60
_PAUSE_S = 0.002  # as long as a stage computes at least: the receiver sleeps by then, and waking it is part of the hop
_TIMEOUT = timedelta(seconds=60)


def hop_ms(hidden_size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Half the median round trip of [1, hidden_size]; nccl between two GPUs, otherwise gloo."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        arguments = [meeting, str(hidden_size), str(dtype).removeprefix("torch."), str(device)]
        other = subprocess.Popen(
            [sys.executable, "-m", "maveriq_profiler.hop", *arguments], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        try:
            return _side(0, meeting, hidden_size, dtype, device)
        finally:
            other.kill()
            other.communicate()


def _side(rank: int, meeting: str, hidden_size: int, dtype: torch.dtype, device: torch.device) -> float:
    """One of the two. The far side returns 0."""
    between_gpus = device.type == "cuda" and torch.cuda.device_count() > 1
    if device.type == "cuda" and between_gpus and rank == 1:
        device = torch.device("cuda", (device.index + 1) % torch.cuda.device_count())
    meet = f"file://{meeting}"
    dist.init_process_group(
        "nccl" if between_gpus else "gloo", init_method=meet, rank=rank, world_size=2, timeout=_TIMEOUT
    )
    try:
        activations = torch.zeros((1, hidden_size), dtype=dtype, device=device if between_gpus else "cpu")
        if rank == 1:
            for _ in range(_ROUND_TRIPS):
                dist.recv(activations, src=0)
                dist.send(activations, dst=0)
            return 0.0
        return median(_round_trip_ms(activations, device) for _ in range(_ROUND_TRIPS)) / 2
    finally:
        dist.destroy_process_group()


def _round_trip_ms(activations: torch.Tensor, device: torch.device) -> float:
    time.sleep(_PAUSE_S)
    begun = time.perf_counter()
    there = dist.isend(activations, dst=1)
    dist.recv(activations, src=1)
    if there is not None:
        there.wait()
    if activations.is_cuda:
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begun) * 1e3


if __name__ == "__main__":
    _side(1, sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3]), torch.device(sys.argv[4]))
