"""Masks say who attends to whom, token by token, for each kind of layer that a model has."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maveriq.torch_layers import AttentionMasks

CPU, WINDOW = torch.device("cpu"), 3


def config(**fields: object) -> Any:
    return SimpleNamespace(**{"_attn_implementation": "sdpa", "sliding_window": None, **fields})


def expected(kind: str, positions: torch.Tensor, end: int) -> list[list[list[bool]]]:
    oldest = 0 if kind == "full_attention" else WINDOW
    return [
        [[key <= at and (not oldest or key > at - oldest) for key in range(end)] for at in row]
        for row in positions.tolist()
    ]


@pytest.mark.parametrize(
    ("window", "layer_types", "kinds"),
    [
        (None, None, ("full_attention",)),
        (WINDOW, None, ("sliding_attention",)),
        (WINDOW, ["sliding_attention", "full_attention", "sliding_attention"], ("full_attention", "sliding_attention")),
        (None, ["full_attention"] * 2, ("full_attention",)),
    ],
)
@pytest.mark.parametrize("starts", [(0, 0), (5, 5), (2, 7)])
def test_each_token_sees_itself_and_those_before_it_within_the_window(
    window: int | None, layer_types: list[str] | None, kinds: tuple[str, ...], starts: tuple[int, ...]
) -> None:
    masks = AttentionMasks(config(sliding_window=window, layer_types=layer_types), torch.float32, CPU)
    positions = torch.tensor(starts)[:, None] + torch.arange(4)
    end = max(starts) + 4
    made = masks.of(positions, end)
    assert masks.kinds == kinds
    by_kind = made if isinstance(made, dict) else {kinds[0]: made}
    assert set(by_kind) == set(kinds)
    for kind, mask in by_kind.items():
        assert mask.dtype is torch.bool and mask.shape == (2, 1, 4, end)
        assert mask[:, 0].tolist() == expected(kind, positions, end)


def test_attention_that_adds_its_mask_gets_0_and_the_least_number() -> None:
    masks = AttentionMasks(config(_attn_implementation="eager"), torch.bfloat16, CPU)
    made = masks.of(torch.tensor([[0, 1]]), 2)
    assert isinstance(made, torch.Tensor) and made.dtype is torch.bfloat16
    least = torch.finfo(torch.bfloat16).min
    assert made[0, 0].tolist() == [[0.0, least], [0.0, 0.0]]
