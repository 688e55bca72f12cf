"""Buffers that no checkpoint holds (rotary frequencies, tables of positions, embedding scales), computed at loading."""

# torch and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false

from typing import Any

import torch
from torch import nn


def materialise_buffers(model: Any, within: nn.Module, device: torch.device) -> None:
    """Compute those of `within` on `device`, as transformers' own loading does; what layers have alike is kept once.

    Args:
        model: of transformers; its parameters may still be on meta, where this does nothing.
    """
    kept: dict[str, torch.Tensor] = {}
    for module in within.modules():
        computed = [name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None]
        for name in computed:
            like: Any = module._buffers[name]
            module._buffers[name] = torch.empty_like(like, device=device)
        if computed:
            model._init_weights(module)
        for name in computed:
            buffer: Any = module._buffers[name]
            known = kept.setdefault(name, buffer)
            if known.dtype == buffer.dtype and torch.equal(known, buffer):
                module._buffers[name] = known
