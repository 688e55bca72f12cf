"""How long one token's activations take to the next stage: ping-pong between two processes over torch.distributed."""

import json
import os
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import NoReturn, Self

import torch
import torch.distributed as dist

_ROUND_TRIPS = 60
_PAUSE_S = 0.002  # as long as a stage computes at least: the receiver sleeps by then, and waking it is part of the hop
_TIMEOUT = timedelta(seconds=60)
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class FarSide:
    """The other process of the ping-pong, asleep until it is asked.

    Forked from this one, which has torch, rather than started afresh: importing it again takes seconds. So it must be
    entered before this process computes anything.
    """

    def __enter__(self) -> Self:
        told_fd, self._tell_fd = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._tell_fd)
            _far_side(told_fd)
        os.close(told_fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._tell_fd)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def hop_ms(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> float:
        """Half the median round trip of [1, hidden_size]; nccl between two GPUs, otherwise gloo. Once."""
        with tempfile.TemporaryDirectory() as folder:
            meeting = str(Path(folder) / "meeting")
            told = (meeting, hidden_size, str(dtype).removeprefix("torch."), str(device), os.environ.get(_VISIBLE))
            os.write(self._tell_fd, json.dumps(told).encode())
            return _side(0, meeting, hidden_size, dtype, device)


def _far_side(told_fd: int) -> NoReturn:
    """Answer once, where it is asked at all: the pipe also ends with who would have asked."""
    try:
        if told := os.read(told_fd, 65_536):
            meeting, hidden_size, dtype, device, visible = json.loads(told)
            if visible is not None:  # chosen since the fork
                os.environ[_VISIBLE] = visible
            _side(1, meeting, hidden_size, getattr(torch, dtype), torch.device(device))
    finally:
        os._exit(0)  # what its origin would clean up at its end is not its own


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
