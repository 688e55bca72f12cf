"""Hands activations from stage to stage through torch.distributed: nccl between GPUs, else gloo by way of the host."""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from maveriq_worker.torch_steps import StageSpec

MAX_UNSENT = 8  # activations kept for a slower stage before waiting for it


@dataclass(frozen=True, slots=True)
class Arriving:
    """Activations on their way: asked for early, because they are not sent before."""

    work: Any
    hidden: torch.Tensor
    device: torch.device

    def wait(self) -> torch.Tensor:
        """[rows, tokens, hidden size] on the stage's device."""
        self.work.wait()
        return self.hidden.to(self.device)


class Transport:
    """A chain: every stage receives from the one before and sends to the one after."""

    def __init__(self, spec: StageSpec, hidden_size: int, dtype: torch.dtype) -> None:
        self._spec = spec
        self._hidden_size, self._dtype = hidden_size, dtype
        self._device = torch.device(spec.device)
        self._through_host = spec.backend == "gloo" and self._device.type == "cuda"
        # Blocking sends hang as soon as two micro-batches are in flight; so handles, kept with what they send.
        self._unsent: deque[tuple[Any, torch.Tensor]] = deque()
        if spec.num_stages > 1:
            dist.init_process_group(
                spec.backend,
                init_method=f"file://{spec.rendezvous}",
                rank=spec.rank,
                world_size=spec.num_stages,
                device_id=self._device if spec.backend == "nccl" else None,
            )
            self._warm_up()

    def send(self, hidden: torch.Tensor) -> None:
        """To the next stage; returns before it has arrived."""
        payload = hidden.cpu() if self._through_host else hidden.contiguous()
        self._unsent.append((dist.isend(payload, self._spec.rank + 1), payload))
        while self._unsent and (len(self._unsent) > MAX_UNSENT or self._unsent[0][0].is_completed()):
            self._unsent.popleft()[0].wait()

    def expect(self, num_rows: int, num_tokens: int) -> Arriving:
        """Activations [rows, tokens, hidden size] from the stage before."""
        device = torch.device("cpu") if self._through_host else self._device
        hidden = torch.empty(num_rows, num_tokens, self._hidden_size, dtype=self._dtype, device=device)
        return Arriving(dist.irecv(hidden, self._spec.rank - 1), hidden, self._device)

    def _warm_up(self) -> None:
        """One token through the chain: connections are made here, not under the first request."""
        hidden = torch.zeros(1, 1, self._hidden_size, dtype=self._dtype, device=self._device)
        if self._spec.rank > 0:
            hidden = self.expect(1, 1).wait()
        if self._spec.rank < self._spec.num_stages - 1:
            self.send(hidden)
