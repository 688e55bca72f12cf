"""Linear layers whose weights are kept, and read, in 8 or 4 bits; nothing else of them is quantised.

They multiply with the kernels of torch itself, those that torchao packs its CPU weights for. On CPUs these take
activations in bf16, add up in fp32 and give bf16. Weights of 8 bits lose nothing by it; on SmolLM2 in int8 it makes a
twentieth of the divergence from full precision (0.0002 of 0.0034 nats a token).
"""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from maveriq.law.weights import int4_group

MOST_KERNEL_ROWS = 63  # with more, whole blocks made from int8 are faster: measured from 576 x 1536 to 5632 x 2048
_KERNEL_INPUTS = 16  # torch's int8 kernel reads past the end of rows that this does not divide
_BLOCK_BYTES = 2 << 20  # of a weight in fp32 at a time, so that it stays in the second-level cache
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
        self.register_buffer(
            "packed", torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
        )
        self.register_buffer("scale", weight.new_empty(self.out_features, dtype=torch.bfloat16))
        for rows in _in_turn(weight):
            part = weight[rows].float()
            scale = (part.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(torch.float32).tiny).bfloat16()
            self.scale[rows] = scale
            self.packed[rows] = (part / scale.float()[:, None]).round_().clamp_(-127, 127)
        self.bias = bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: [..., in features]"""
        rows = input.reshape(-1, self.in_features)
        if input.device.type != "cpu":
            product = functional.linear(rows.bfloat16(), self.packed.bfloat16()).mul_(self.scale)  # fp16 might overflow
        elif len(rows) <= MOST_KERNEL_ROWS and self.in_features % _KERNEL_INPUTS == 0:
            product = _ATEN._weight_int8pack_mm(rows.bfloat16().contiguous(), self.packed, self.scale)
        else:
            product = self._in_blocks(rows.bfloat16().float()).mul_(self.scale.float()).bfloat16()
        return _shaped(product.to(input.dtype), self.bias, input, self.out_features)

    def _in_blocks(self, rows: torch.Tensor) -> torch.Tensor:
        """As the kernel computes, so that a request's tokens do not depend on how many are read with it."""
        size = max(64, _BLOCK_BYTES // (4 * self.in_features))
        blocks = torch.split(self.packed, size)
        return torch.cat([functional.linear(rows, block.float()) for block in blocks], dim=-1)


class Int4Linear(nn.Module):
    """As nn.Linear, with a scale and a zero point for each group of inputs: (value - 8) x scale + zero."""

    packed: torch.Tensor  # two to a byte, in the order that the device's kernel wants
    scale_and_zero: torch.Tensor  # [groups, out, 2], bf16

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None) -> None:
        """weight: [out, in], of any full precision; `law.weights.kept_in` says which shapes; not kept."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.group = int4_group(self.in_features)
        values = torch.empty_like(weight, dtype=torch.int32, memory_format=torch.contiguous_format)
        groups = self.in_features // self.group
        both = weight.new_empty((groups, self.out_features, 2), dtype=torch.bfloat16)
        for rows in _in_turn(weight):
            part = weight[rows].float().reshape(-1, groups, self.group)
            low, high = part.amin(dim=2), part.amax(dim=2)
            scale = ((high - low) / 15).clamp_(min=1e-6).bfloat16()
            zero = (low + 8 * scale.float()).bfloat16()
            part = (part - zero.float()[..., None]) / scale.float()[..., None]
            values[rows] = part.add_(8).round_().clamp_(0, 15).reshape(-1, self.in_features).to(torch.int32)
            both[:, rows, 0], both[:, rows, 1] = scale.t(), zero.t()
        self.register_buffer("packed", _packed(values))
        self.register_buffer("scale_and_zero", both)
        self.bias = bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: [..., in features]"""
        rows = input.reshape(-1, self.in_features).bfloat16().contiguous()
        on_cpu = input.device.type == "cpu"
        multiply = _ATEN._weight_int4pack_mm_for_cpu if on_cpu else _ATEN._weight_int4pack_mm
        product: torch.Tensor = multiply(rows, self.packed, self.group, self.scale_and_zero)
        return _shaped(product.to(input.dtype), self.bias, input, self.out_features)


def _in_turn(weight: torch.Tensor) -> Iterator[slice]:
    """Rows to quantise together: few, so that what this takes beside the weight stays small."""
    size = max(1, _BLOCK_BYTES // (4 * weight.shape[1]))
    return (slice(first, first + size) for first in range(0, len(weight), size))


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
