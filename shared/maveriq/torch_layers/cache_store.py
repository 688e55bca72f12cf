"""Keys or values of one layer, for rows of requests: as computed, or in int8 with a scale for each token and head."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch

Where = tuple[slice | torch.Tensor, ...]


def with_copies(heads: torch.Tensor, copies: int) -> torch.Tensor:
    """[rows, heads, tokens, head size]: each head so often in a row, as the layer handed it over."""
    return heads if copies == 1 else heads.repeat_interleave(copies, dim=1)


class CacheStore:
    """Rows x heads x tokens x head size; what was never written reads as 0."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, *, int8: bool):
        """
        Args:
            shape: rows, heads, tokens, head size.
            dtype: of what is written and read.
        """
        self._dtype = dtype
        # Zeros, because a masked row still meets its weight of 0, and 0 x NaN is NaN.
        self._kept = torch.zeros(shape, dtype=torch.int8 if int8 else dtype, device=device)
        self._scales = torch.zeros((*shape[:3], 1), dtype=torch.bfloat16, device=device) if int8 else None

    @property
    def num_bytes(self) -> int:
        return self._kept.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def write(self, where: Where, new: torch.Tensor) -> None:
        """where: of rows, heads and tokens; new: [..., head size], in the shape that `where` selects."""
        if self._scales is None:
            self._kept[where] = new
            return
        exact = new.float()
        scales = (exact.abs().amax(dim=-1, keepdim=True) / 127).clamp_(min=torch.finfo(torch.float32).tiny).bfloat16()
        self._kept[where] = (exact / scales.float()).round_().clamp_(-127, 127).to(torch.int8)
        self._scales[where] = scales

    def read(self, rows: slice, end: int) -> torch.Tensor:
        """[rows, heads, end, head size]"""
        kept = self._kept[rows, :, :end]
        if self._scales is None:
            return kept
        return kept.to(self._dtype).mul_(self._scales[rows, :, :end].to(self._dtype))

    def copy_row(self, source: int, target: int, num_tokens: int) -> None:
        for store in (self._kept, self._scales):
            if store is not None:
                store[target, :, :num_tokens] = store[source, :, :num_tokens]
