"""The KV cache of one stage: a row for each decode slot, written at each request's own positions."""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch

from maveriq.law.weights import SCALE_BYTES
from maveriq.torch_layers import CacheStore, with_copies


class KvShapes:
    """Stands in for a cache in a model's first forward, to see what each layer keeps of a token."""

    def __init__(self, copies: int = 1) -> None:
        """copies: how often in a row each head is handed over; one of them is kept."""
        self.copies = copies
        self.of_layer: dict[int, tuple[torch.Size, torch.Size]] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = keys[:, :: self.copies], values[:, :: self.copies]
        self.of_layer[layer_idx] = (kept[0].shape, kept[1].shape)  # [1, KV heads, 1, head size]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def num_bytes(self, num_rows: int, context_tokens: int, element_bytes: int, *, int8: bool) -> int:
        """What `KvSlots` takes."""
        kept = [shape for pair in self.of_layer.values() for shape in pair]
        of_head = (shape[3] + SCALE_BYTES if int8 else shape[3] * element_bytes for shape in kept)
        return num_rows * context_tokens * sum(shape[1] * size for shape, size in zip(kept, of_head, strict=True))


class KvSlots:
    """What transformers' layers ask of a cache: `update`. A step's batch is a run of rows."""

    def __init__(
        self,
        shapes: KvShapes,
        num_rows: int,
        context_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        int8: bool = False,
    ) -> None:
        """dtype: of what the layers write and read."""

        def store(shape: torch.Size) -> CacheStore:
            return CacheStore((num_rows, shape[1], context_tokens, shape[3]), dtype, device, int8=int8)

        self._keys, self._values = (
            {layer: store(pair[which]) for layer, pair in shapes.of_layer.items()} for which in (0, 1)
        )
        self._copies = shapes.copies
        self._rows = slice(0, 0)
        self._start: int | None = None
        self._at: tuple[torch.Tensor, torch.Tensor] | None = None
        self._end = 0

    @property
    def num_bytes(self) -> int:
        return sum(store.num_bytes for part in (self._keys, self._values) for store in part.values())

    def move(self, source: int, target: int, num_tokens: int) -> None:
        for part in (self._keys, self._values):
            for store in part.values():
                store.copy_row(source, target, num_tokens)

    def place(self, first_row: int, positions: torch.Tensor, starts: tuple[int, ...], num_tokens: int) -> None:
        """Say where the next forward's tokens belong. positions: [rows, num_tokens], as the layers see them."""
        self._rows = slice(first_row, first_row + len(starts))
        self._start = starts[0] if len(set(starts)) == 1 else None
        self._end = max(starts) + num_tokens
        rows = torch.arange(first_row, first_row + len(starts), device=positions.device)
        self._at = (rows[:, None].expand_as(positions), positions)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a step's keys and values [rows, heads, tokens, head size]; all of each row's from its position 0."""
        return self._write(self._keys[layer_idx], keys), self._write(self._values[layer_idx], values)

    def _write(self, store: CacheStore, new: torch.Tensor) -> torch.Tensor:
        new = new[:, :: self._copies]
        if self._start is not None:
            store.write((self._rows, slice(None), slice(self._start, self._start + new.shape[2])), new)
        elif self._at is not None:
            rows, positions = self._at
            # index tensors apart put their shape first
            store.write((rows, slice(None), positions), new.transpose(1, 2))
        return with_copies(store.read(self._rows, self._end), self._copies)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._start or 0
