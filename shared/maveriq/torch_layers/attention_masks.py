"""Who attends to whom in a pass, as transformers' decoders take it: a mask, or one for each kind of their layers."""

from typing import Any

import torch


class AttentionMasks:
    """Of one model. Layers slide (see the last tokens only) or not."""

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        """
        Args:
            config: of the whole decoder: its forward looks up every kind that its layers have, wherever it is cut.
            dtype: of what is computed; only attention that adds its mask (`eager`) needs it.
        """
        self._dtype, self._device = dtype, device
        self._is_added: bool = config._attn_implementation == "eager"
        self._window: int | None = getattr(config, "sliding_window", None)
        layer_types: list[str] | None = getattr(config, "layer_types", None)
        only = "full_attention" if self._window is None else "sliding_attention"
        self.kinds: tuple[str, ...] = (only,) if layer_types is None else tuple(sorted(set(layer_types)))

    def of(self, positions: torch.Tensor, end: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """For tokens at `positions` [rows, tokens], with keys up to position `end`: [rows, 1, tokens, end]."""
        masks = {kind: self._mask(kind, positions[:, None, :, None], end) for kind in self.kinds}
        return masks if len(masks) > 1 else masks[self.kinds[0]]

    def _mask(self, kind: str, positions: torch.Tensor, end: int) -> torch.Tensor:
        keys = torch.arange(end, device=self._device)
        seen = keys <= positions
        if kind == "sliding_attention" and self._window is not None:
            seen &= keys > positions - self._window
        if not self._is_added:
            return seen
        hidden = torch.finfo(self._dtype).min
        return torch.zeros(seen.shape, dtype=self._dtype, device=self._device).masked_fill_(~seen, hidden)
