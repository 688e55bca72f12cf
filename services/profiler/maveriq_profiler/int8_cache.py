"""A KV cache for transformers whose keys and values are read as the torch engine keeps them in 8 bits."""

# transformers and torch are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from typing import Any

import torch
from transformers import DynamicCache

from maveriq.torch_layers import CacheStore


class Int8Cache(DynamicCache):  # type: ignore[misc]
    """Rounds what is written; each token is rounded by itself, so that earlier ones are as they were."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = _as_kept(key_states), _as_kept(value_states)
        held: tuple[torch.Tensor, torch.Tensor] = super().update(keys, values, layer_idx, *args, **kwargs)
        return held


def _as_kept(new: torch.Tensor) -> torch.Tensor:
    """new: [rows, heads, tokens, head size]"""
    rows, heads, tokens, size = new.shape
    store = CacheStore((rows, heads, tokens, size), new.dtype, new.device, int8=True)
    store.write((slice(None), slice(None), slice(None)), new)
    return store.read(slice(None), tokens)
