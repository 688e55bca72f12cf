"""Linear layers in blocks: the same product for any rows, of the same weights, and only where it gains."""

import pytest
import torch
from torch import nn

from maveriq.torch_layers.blocked_linear import BLOCK, BlockedLinear, use_blocks

CPU = torch.device("cpu")
LARGE = (576, 1024)  # in and out features: 2.25 MiB


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (4, 1), (8, 1), (1, 9), (2, 7), (15, 1), (16, 1), (4, 8)])
def test_the_product_is_that_of_the_plain_layer(shape: tuple[int, int], bias: bool) -> None:
    layer, given = nn.Linear(*LARGE, bias=bias), torch.randn(*shape, LARGE[0])
    with torch.inference_mode():
        expected = nn.functional.linear(given.double(), layer.weight.double(), layer.bias.double() if bias else None)
        use_blocks(nn.Sequential(layer), CPU)
        got = layer(given)
    assert type(layer) is BlockedLinear
    assert got.is_contiguous() and got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5)


def test_weights_stay_where_they_are_tied_ones_too() -> None:
    embedding, head = nn.Embedding(1024, 576), nn.Linear(*LARGE, bias=False)
    head.weight = embedding.weight
    where = head.weight.data_ptr()
    use_blocks(nn.ModuleList([embedding, head]), CPU)
    assert head.weight is embedding.weight and head.weight.data_ptr() == where


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(576, 576, bias=False),
        nn.Linear(*LARGE, bias=False, dtype=torch.bfloat16),
        nn.Linear(576, 16 * BLOCK + 1, bias=False),
    ],
    ids=["small", "bf16", "odd"],
)
def test_layers_without_a_gain_are_left_alone(layer: nn.Linear) -> None:
    use_blocks(nn.Sequential(layer), CPU)
    assert type(layer) is nn.Linear
