"""Keys and values in storage taken once, as the torch engine keeps them: growing by copying would be measured too."""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class Room:
    """One layer's storage, with the methods that `transformers.cache_utils.Cache` calls of its layers."""

    is_sliding = False
    is_croppable = True
    is_compileable = False
    is_initialized = True
    supports_early_init = False

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.length = 0
        self.keys: torch.Tensor | None = None  # [batch, kv_heads, max_tokens, head_dim]
        self.values: torch.Tensor | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [batch, kv_heads, new tokens, head_dim] of both, and give all that is held."""
        if self.keys is None or self.values is None:
            self.keys = keys.new_zeros((*keys.shape[:2], self.max_tokens, keys.shape[-1]))
            self.values = values.new_zeros((*values.shape[:2], self.max_tokens, values.shape[-1]))
        end = self.length + keys.shape[-2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


CacheLayerMixin.register(Room)  # Cache asks for it by isinstance


class Rooms:
    """The cache of one shape, for the deepest cut."""

    def __init__(self, num_layers: int, max_tokens: int) -> None:
        self._rooms = [Room(max_tokens) for _ in range(num_layers)]

    def cache(self, num_layers: int, length: int) -> Any:
        """A transformers Cache that takes up at `length` tokens; what is held up to there stays."""
        for room in self._rooms:
            room.length = length
        layers: list[Any] = list(self._rooms[:num_layers])
        return Cache(layers=layers)
