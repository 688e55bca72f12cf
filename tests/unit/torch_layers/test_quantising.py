"""Quantised linear layers: torchao's values, near what they stand for, of the bytes that the law says."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig, MixtralConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

from maveriq import law
from maveriq.contracts import Precision
from maveriq.torch_layers import Int4Linear, Int8Linear, Unquantisable, quantise, quantised_bytes, weight_bytes
from tests.unit.torch_layers.shapes import facts_of

QUANTISED = (Precision.INT8, Precision.INT4)
SHAPES = ((1536, 576), (576, 1536), (192, 576), (96, 96), (100, 100), (7, 64), (1000, 256))  # out, in


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
@pytest.mark.parametrize("rows", [(1, 1), (2, 3), (63,), (3, 100)], ids=str)
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
def test_every_weight_is_within_half_a_step_of_what_it_stands_for(shape: tuple[int, int]) -> None:
    plain, int8 = one(shape, Precision.INT8)
    assert isinstance(int8, Int8Linear)
    lost = (plain.weight.detach() - int8.packed * int8.scale.float()[:, None]).abs()
    assert bool((lost <= 0.8 * int8.scale.float()[:, None]).all())  # half a step; 0.75 where the scale was rounded down


@pytest.mark.parametrize("shape", [(1536, 576), (576, 1536)], ids=str)
def test_values_are_as_near_as_those_that_torchao_chooses(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same grids, but for scales that are rounded to the 16 bits that they are stored in before they are used."""
    monkeypatch.setenv("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")  # no kernel of its own is used
    chooser = pytest.importorskip("torchao.quantization.quant_primitives")
    plain, int8 = one(shape, Precision.INT8)
    assert isinstance(int8, Int8Linear)
    scale, zero = chooser.choose_qparams_affine(
        plain.weight.detach(), chooser.MappingType.SYMMETRIC_NO_CLIPPING_ERR, [1, shape[1]], torch.int8, -127, 127
    )
    theirs = chooser.quantize_affine(plain.weight.detach(), [1, shape[1]], scale, zero, torch.int8, -127, 127)
    assert int((theirs.int() - int8.packed.int()).abs().max()) <= 1
    torch.testing.assert_close(int8.scale.float(), scale.float(), rtol=2**-8, atol=0)

    plain, int4 = one(shape, Precision.INT4)
    assert isinstance(int4, Int4Linear)
    block = [1, int4.group]
    scale, zero = chooser._choose_qparams_affine_tinygemm(
        plain.weight.detach(),
        chooser.MappingType.ASYMMETRIC,
        block,
        torch.int32,
        0,
        15,
        1e-6,
        torch.bfloat16,
        torch.bfloat16,
    )
    values = chooser._quantize_affine_tinygemm(
        plain.weight.detach(), block, scale.float(), zero.float(), torch.int32, 0, 15
    )
    theirs4 = chooser._dequantize_affine_tinygemm(
        values, block, scale.float(), zero.float(), torch.int32, 0, 15, output_dtype=torch.float32
    )
    ours, theirs = (float((found - plain.weight.detach()).norm()) for found in (whole(int4), theirs4))
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("precision", [Precision.FP32, *QUANTISED])
@pytest.mark.parametrize("hidden", [576, 64, 96, 80])
def test_a_layer_takes_the_bytes_that_the_law_says(hidden: int, precision: Precision) -> None:
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=3 * hidden, num_attention_heads=hidden // 16, head_dim=16,
        num_key_value_heads=hidden // 16, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, 0)
    with torch.device("meta"):
        expected = quantised_bytes(LlamaDecoderLayer(config, 0), precision)
    told = law.layer_weight_bytes(facts_of(config, layer), "torch", precision, 4.0)
    quantise(layer, precision)
    assert weight_bytes(layer) == expected == told


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
