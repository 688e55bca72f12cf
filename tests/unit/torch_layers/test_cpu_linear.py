"""Linear layers on a CPU, in blocks or packed: the same products in the same bytes, and only where it gains."""

import pytest
import torch
from torch import nn

from maveriq.torch_layers import weight_bytes
from maveriq.torch_layers.cpu_linear import BLOCK, BlockedLinear, PackedLinear, packs_bf16, use_cpu_kernels

CPU = torch.device("cpu")
LARGE = (576, 1024)  # in and out features: 2.25 MiB
SHAPES = [(1, 1), (3, 1), (4, 1), (8, 1), (1, 9), (2, 7), (15, 1), (16, 1), (4, 8)]

packs = pytest.mark.skipif(not packs_bf16(), reason="no oneDNN here, or a processor on which it multiplies no bf16")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_is_that_of_the_plain_layer(shape: tuple[int, int], bias: bool) -> None:
    layer, given = nn.Linear(*LARGE, bias=bias), torch.randn(*shape, LARGE[0])
    with torch.inference_mode():
        expected = nn.functional.linear(given.double(), layer.weight.double(), layer.bias.double() if bias else None)
        use_cpu_kernels(layer, CPU, head=None)
        got = layer(given)
    assert type(layer) is BlockedLinear
    assert got.is_contiguous() and got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5)


@packs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 300)])
def test_a_packed_product_is_that_of_the_plain_layer_in_as_many_bytes(shape: tuple[int, int], bias: bool) -> None:
    layer = nn.Linear(*LARGE, bias=bias, dtype=torch.bfloat16)
    given, before = torch.randn(*shape, LARGE[0], dtype=torch.bfloat16), weight_bytes(layer)
    with torch.inference_mode():
        expected = layer.double()(given.double())
        layer.bfloat16()
        use_cpu_kernels(layer, CPU, head=None)
        got = layer(given)
    assert type(layer) is PackedLinear and weight_bytes(layer) == before
    assert got.dtype is torch.bfloat16 and got.is_contiguous() and got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_s_weight_stays_where_it_is_which_may_be_the_embedding_s(dtype: torch.dtype) -> None:
    embedding, head = nn.Embedding(1024, 576, dtype=dtype), nn.Linear(*LARGE, bias=False, dtype=dtype)
    head.weight = embedding.weight
    where = head.weight.data_ptr()
    use_cpu_kernels(nn.ModuleList([embedding, head]), CPU, head=head)
    assert head.weight is embedding.weight and head.weight.data_ptr() == where


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(576, 576, bias=False),
        nn.Linear(576, 16 * BLOCK + 1, bias=False),
        nn.Linear(576, 16 * BLOCK + 1, bias=False, dtype=torch.bfloat16),
    ],
    ids=["small", "odd", "odd, and padded if packed"],
)
def test_layers_without_a_gain_are_left_alone(layer: nn.Linear) -> None:
    use_cpu_kernels(layer, CPU, head=None)
    assert type(layer) is nn.Linear
