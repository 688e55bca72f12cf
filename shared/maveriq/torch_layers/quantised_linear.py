"""Linear layers whose weights are kept, and read, in 8 or 4 bits; nothing else of them is quantised.

They multiply with the kernels of torch itself, those that torchao packs its CPU weights for. On CPUs these compute in
bf16 and add up in fp32: the weights lose nothing by it (they fit its 8 bits), activations an eighth of what rounding
the weights to int8 costs.
"""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from maveriq.law.weights import int4_group

MOST_KERNEL_ROWS = 63  # with more, whole blocks made from int8 are faster: measured from 576 x 1536 to 5632 x 2048
_KERNEL_INPUTS = 16  # torch's int8 kernel reads past the end of rows that this does not divide
_BLOCK_BYTES = 2 << 20  # of a weight made whole to multiply with: stays in the second-level cache
_TILES = (8, 4, 2)  # of 16 inputs that CUDA's int4 kernel keeps together
_ATEN: Any = torch.ops.aten


class Int8Linear(nn.Module):
    """As nn.Linear, with one scale for each output channel, symmetric about 0."""

    packed: torch.Tensor  # [out, in], int8
    scale: torch.Tensor  # [out], bf16

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None) -> None:
        """weight: [out, in], of any full precision; not kept."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        exact = weight.float()
        scale = (exact.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(torch.float32).tiny).bfloat16()
        packed = exact.div_(scale.float()[:, None]) if exact is not weight else exact / scale.float()[:, None]
        self.register_buffer("packed", packed.round_().clamp_(-127, 127).to(torch.int8).contiguous())
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: [..., in features]"""
        rows = input.reshape(-1, self.in_features)
        few = len(rows) <= MOST_KERNEL_ROWS and self.in_features % _KERNEL_INPUTS == 0
        if few and input.device.type == "cpu":
            product = _ATEN._weight_int8pack_mm(rows.bfloat16().contiguous(), self.packed, self.scale).to(input.dtype)
        else:
            product = self._in_blocks(rows).mul_(self.scale.to(input.dtype))
        return _shaped(product, self.bias, input, self.out_features)

    def _in_blocks(self, rows: torch.Tensor) -> torch.Tensor:
        size = max(64, _BLOCK_BYTES // (self.in_features * rows.element_size()))
        if rows.device.type != "cpu" or size >= self.out_features:
            return functional.linear(rows, self.packed.to(rows.dtype))
        blocks = torch.split(self.packed, size)
        return torch.cat([functional.linear(rows, block.to(rows.dtype)) for block in blocks], dim=-1)


class Int4Linear(nn.Module):
    """As nn.Linear, with a scale and a zero point for each group of inputs: (value - 8) x scale + zero."""

    packed: torch.Tensor  # two to a byte, in the order that the device's kernel wants
    scale_and_zero: torch.Tensor  # [groups, out, 2], bf16

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None) -> None:
        """weight: [out, in], of any full precision; `law.weights.kept_in` says which shapes; not kept."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.group = int4_group(self.in_features)
        grouped = weight.float().reshape(self.out_features, -1, self.group)  # [out, groups, group]
        low, high = grouped.amin(dim=2, keepdim=True), grouped.amax(dim=2, keepdim=True)
        scale = ((high - low) / 15).clamp_(min=1e-6).bfloat16()
        zero = (low + 8 * scale.float()).bfloat16()
        values = ((grouped - zero.float()) / scale.float()).add_(8).round_().clamp_(0, 15)
        self.register_buffer("packed", _packed(values.view(self.out_features, self.in_features).to(torch.int32)))
        both = torch.cat((scale, zero), dim=2)  # [out, groups, 2]
        self.register_buffer("scale_and_zero", both.transpose(0, 1).contiguous())
        self.bias = bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: [..., in features]"""
        rows = input.reshape(-1, self.in_features).bfloat16().contiguous()
        on_cpu = input.device.type == "cpu"
        multiply = _ATEN._weight_int4pack_mm_for_cpu if on_cpu else _ATEN._weight_int4pack_mm
        product: torch.Tensor = multiply(rows, self.packed, self.group, self.scale_and_zero)
        return _shaped(product.to(input.dtype), self.bias, input, self.out_features)


def _packed(values: torch.Tensor) -> torch.Tensor:
    """values: [out, in], int32 from 0 to 15."""
    if values.device.type == "cpu":
        return cast("torch.Tensor", _ATEN._convert_weight_to_int4pack_for_cpu(values, 1))
    pairs = (values[:, ::2] << 4 | values[:, 1::2]).to(torch.uint8).contiguous()
    tiles = next(count for count in _TILES if values.shape[1] % (16 * count) == 0)
    return cast("torch.Tensor", _ATEN._convert_weight_to_int4pack(pairs, tiles))


def _shaped(product: torch.Tensor, bias: nn.Parameter | None, input: torch.Tensor, out_features: int) -> torch.Tensor:
    output = product.view(*input.shape[:-1], out_features)
    return output if bias is None else output.add_(bias)
