"""Linear layers that take a handful of rows block by block of their weight, where MKL is much slower with all at once.

Given 4 to 15 rows and a large fp32 weight, MKL takes longer for the whole product than for its parts; why is not known.
What is multiplied is the weight as it was loaded, so this costs no memory; with other counts of rows nothing changes.
`benchmarks/torch_engine.py` shows what a batch of eight gains over one.
"""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from typing import cast

import torch
from torch import nn

FEWEST_ROWS, MOST_ROWS = 4, 15  # measured with weights from 576 x 576 to 49152 x 576 and 12288 x 4032
BLOCK = 64  # outputs at a time; divides every size but odd vocabularies. 96 is as fast, 192 slower
LEAST_BYTES = 2 << 20  # smaller weights stay in the second-level cache, where blocks bring nothing


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


def use_blocks(model: nn.Module, device: torch.device) -> None:
    """Let the plain linear layers that gain from it work in blocks; their weights stay what and where they are."""
    if device.type != "cpu" or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if type(module) is nn.Linear and _gains(module.weight):
            module.__class__ = BlockedLinear  # keeps parameters, ties and hooks, which a new module would not


def _gains(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.shape[0] % BLOCK == 0 and weight.nbytes >= LEAST_BYTES
