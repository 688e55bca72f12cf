"""Linear layers as a CPU multiplies them fastest: fp32 weights in blocks for a handful of rows, bf16 weights packed.

Given 4 to 15 rows and a large fp32 weight, MKL takes longer for the whole product than for its parts; why is not known.
What is multiplied is the weight as it was loaded, so this costs no memory; with other counts of rows nothing changes.

A bf16 weight is brought into the order that oneDNN reads at each product, unless it is kept in that order: products of
few rows then take less time. fp32 weights gain nothing so with one row, and lose a little.

`benchmarks/cpu_linear.py` shows what either brings, `benchmarks/torch_engine.py` what a batch of eight gains over one.
"""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from typing import Any, cast

import torch
from torch import nn

FEWEST_ROWS, MOST_ROWS = 4, 15  # measured with weights from 576 x 576 to 49152 x 576 and 12288 x 4032
BLOCK = 64  # outputs at a time; divides every size but odd vocabularies. 96 is as fast, 192 slower
LEAST_BYTES = 2 << 20  # smaller weights stay in the second-level cache, where blocks bring nothing

_PACKED_FOR_ROWS = 8  # oneDNN wants to know; the order it chooses is as good for one row and for hundreds
_ONEDNN: Any = torch.ops.mkldnn  # what torch's own compiler calls of frozen weights


class BlockedLinear(nn.Linear):
    """As nn.Linear; see above."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: [..., in features]"""
        num_rows = input.numel() // self.in_features
        if not FEWEST_ROWS <= num_rows <= MOST_ROWS:
            return super().forward(input)
        num_blocks = self.out_features // BLOCK
        blocks = self.weight.view(num_blocks, BLOCK, self.in_features).transpose(1, 2)  # [blocks, in, BLOCK]
        rows = input.reshape(1, num_rows, self.in_features).expand(num_blocks, -1, -1)
        product = torch.bmm(rows, blocks).transpose(0, 1)  # [rows, blocks, BLOCK]
        output = product.reshape(*input.shape[:-1], self.out_features)
        bias = cast("torch.Tensor | None", self.bias)
        return output if bias is None else output.add_(bias)


class PackedLinear(nn.Linear):
    """As nn.Linear, with a weight that only oneDNN can read; see above."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: [..., in features]"""
        bias = cast("torch.Tensor | None", self.bias)
        output: torch.Tensor = _ONEDNN._linear_pointwise(input, self.weight, bias, "none", [], "")
        return output


def use_cpu_kernels(model: nn.Module, device: torch.device, *, head: nn.Module | None) -> None:
    """Let the plain linear layers that gain from it work in blocks or packed; their bytes stay as many as they were.

    Args:
        model: with its weights.
        head: never packed: its weight may be the embedding's too, and so it costs the same whether it is or not.
    """
    if device.type != "cpu":
        return
    blocks, packs = torch.backends.mkl.is_available(), packs_bf16()  # type: ignore[no-untyped-call]
    for module in model.modules():
        if type(module) is not nn.Linear:
            continue
        if blocks and _gains_by_blocks(module.weight):
            module.__class__ = BlockedLinear  # keeps parameters, ties and hooks, which a new module would not
        elif packs and module is not head and module.weight.dtype == torch.bfloat16:
            _pack(module)


def _gains_by_blocks(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.shape[0] % BLOCK == 0 and weight.nbytes >= LEAST_BYTES


def packs_bf16() -> bool:
    """Whether this build of torch, on this processor, multiplies packed bf16 weights."""
    return torch.backends.mkldnn.is_available() and bool(_ONEDNN._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]


def _pack(module: nn.Linear) -> None:
    """Unless the order has holes, as of outputs that are no multiple of its blocks: bytes stay as the law counts."""
    packed = _ONEDNN._reorder_linear_weight(module.weight.detach(), _PACKED_FOR_ROWS)
    if _ONEDNN._nbytes(packed) == module.weight.nbytes:
        module.weight = nn.Parameter(packed, requires_grad=False)
        module.__class__ = PackedLinear
