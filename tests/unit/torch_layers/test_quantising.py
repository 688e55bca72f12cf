"""Quantised linear layers: the nearest values that their scales can say, of the bytes that the law says."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig, MixtralConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

from maveriq import law
from maveriq.contracts import Precision
from maveriq.torch_layers import Int4Linear, Int8Linear, Unquantisable, quantise, weight_bytes
from tests.unit.torch_layers.shapes import facts_of

QUANTISED = (Precision.INT8, Precision.INT4)
SHAPES = ((576, 1536), (192, 576), (96, 96), (100, 100), (7, 64))  # out, in


def whole(linear: Int8Linear | Int4Linear) -> torch.Tensor:
    """The weight that a layer multiplies with, read off its own products."""
    with torch.no_grad():
        return linear(torch.eye(linear.in_features, dtype=torch.float32)).t()


def one(shape: tuple[int, int], precision: Precision, *, bias: bool = False) -> tuple[nn.Linear, nn.Module]:
    torch.manual_seed(shape[0])
    plain, holder = nn.Linear(shape[1], shape[0], bias=bias), nn.Module()
    holder.linear = nn.Linear(shape[1], shape[0], bias=bias)
    holder.linear.load_state_dict(plain.state_dict())
    quantise(holder, precision)
    return plain, holder.linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [(1, 1), (63,), (2, 40)], ids=str)
@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_stored_values_for_any_rows(
    shape: tuple[int, int], precision: Precision, rows: tuple[int, ...], dtype: torch.dtype
) -> None:
    plain, quantised = one(shape, precision, bias=True)
    assert isinstance(quantised, Int8Linear | Int4Linear) and quantised.bias is not None
    bias, quantised.bias = quantised.bias, None
    weight = whole(quantised)
    quantised.bias = bias
    given = torch.randn(*rows, shape[1]).to(dtype)
    with torch.inference_mode():
        expected = given.double() @ weight.double().t() + plain.bias.double()
        got = quantised(given)
    assert got.dtype is dtype and got.shape == expected.shape
    assert float((got.double() - expected).norm() / expected.norm()) < 0.006  # of bf16: 2^-8


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_weight_is_stored_as_the_nearest_that_its_channels_scale_can_say(shape: tuple[int, int]) -> None:
    plain, int8 = one(shape, Precision.INT8)
    assert isinstance(int8, Int8Linear)
    scale, weight = int8.scale.float()[:, None], plain.weight.detach()
    largest = weight.abs().amax(dim=1, keepdim=True)
    assert bool(((scale * 127 - largest).abs() <= 2**-8 * largest).all())  # rounded to 16 bits
    nearest = (weight / scale).round().clamp(-127, 127)
    assert torch.equal(int8.packed.float(), nearest)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] % 16 == 0 and shape[1] % 32 == 0], ids=str)
def test_every_weight_is_stored_as_the_nearest_of_the_sixteen_of_its_group(shape: tuple[int, int]) -> None:
    plain, int4 = one(shape, Precision.INT4)
    assert isinstance(int4, Int4Linear)
    scale, zero = (
        part.t().repeat_interleave(int4.group, dim=1)[..., None] for part in int4.scale_and_zero.float().unbind(dim=2)
    )
    grid = (torch.arange(16) - 8) * scale + zero  # [out, in, 16]
    weight = plain.weight.detach()
    nearest = (grid - weight[..., None]).abs().amin(dim=2)
    lost = (whole(int4) - weight).abs()
    assert bool((lost <= nearest + 0.02 * scale[..., 0] + 2**-8 * weight.abs()).all())  # read off products in bf16
    assert float((lost / scale[..., 0]).max()) < 0.6


@pytest.mark.parametrize("precision", [Precision.FP32, *QUANTISED])
@pytest.mark.parametrize("hidden", [576, 64, 96, 80])
def test_a_layer_takes_the_bytes_that_the_law_says(hidden: int, precision: Precision) -> None:
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=3 * hidden, num_attention_heads=hidden // 16, head_dim=16,
        num_key_value_heads=hidden // 16, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, 0)
    told = law.layer_weight_bytes(facts_of(config, layer), "torch", precision, 4.0)
    quantise(layer, precision)
    assert weight_bytes(layer) == told


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_mixture_keeps_its_experts_whole_and_its_bytes_are_told(precision: Precision) -> None:
    config = MixtralConfig(
        hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4
    )
    layer = MixtralDecoderLayer(config, 0)
    before = weight_bytes(layer)
    facts = facts_of(config, layer, num_experts=4)
    quantise(layer, precision)
    assert weight_bytes(layer) == law.layer_weight_bytes(facts, "torch", precision, 4.0) < before


def test_the_transposed_layers_of_gpt2_are_quantised_too() -> None:
    torch.manual_seed(1)
    block = GPT2Block(GPT2Config(n_embd=64, n_head=4), layer_idx=0).eval()
    given = torch.randn(1, 5, 64)
    with torch.inference_mode():
        expected = block(given)
        before = weight_bytes(block)
        quantise(block, Precision.INT8)
        got = block(given)
    assert weight_bytes(block) < 0.3 * before
    first, second = (out if isinstance(out, torch.Tensor) else out[0] for out in (expected, got))
    assert float((first - second).norm() / first.norm()) < 0.02


def test_full_precision_changes_nothing_and_unknown_ones_are_refused_by_name() -> None:
    holder = nn.Sequential(nn.Linear(64, 64))
    quantise(holder, Precision.FP32)
    assert type(holder[0]) is nn.Linear
    with pytest.raises(Unquantisable, match=r"int8, int4, not fp8"):
        quantise(holder, Precision.FP8)
