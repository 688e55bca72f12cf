"""Which modules of a decoder layer are quantised, and what a module's weights take."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from maveriq.contracts import FULL_PRECISIONS, Precision
from maveriq.law.weights import TORCH_QUANTISED, kept_in, matrix_bytes
from maveriq.torch_layers.quantised_linear import Int4Linear, Int8Linear

_TRANSPOSED = "Conv1D"  # transformers' linear layer of GPT-2: its weight is [in, out]


class Unquantisable(Exception):
    """The torch engine makes no weights of this precision."""


def quantise(layer: nn.Module, precision: Precision) -> None:
    """Keep every linear layer within `layer` in this precision; a full one changes nothing.

    One matrix at a time, each freed at once: beside the layer no more than its largest matrix in 32 bits is held.

    Raises:
        Unquantisable
    """
    check_quantisable(precision)
    if precision in FULL_PRECISIONS:
        return
    found = list(_linears(layer))
    while found:
        _replace(*found.pop(), precision)
    _give_back()


def _replace(owner: nn.Module, name: str, linear: nn.Linear, precision: Precision) -> None:
    weight = _weight(linear)
    rows, columns = weight.shape
    form = Int8Linear if kept_in(rows, columns, precision) is Precision.INT8 else Int4Linear
    with torch.no_grad():
        setattr(owner, name, form(weight, linear.bias).train(linear.training))


def _give_back() -> None:
    """What was freed to the system: glibc would keep it between the layers' small tensors, twice int4's own bytes."""
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def check_quantisable(precision: Precision) -> None:
    """Raises Unquantisable."""
    if precision not in (*FULL_PRECISIONS, *TORCH_QUANTISED):
        raise Unquantisable(
            f"the torch engine makes weights of {', '.join((*FULL_PRECISIONS, *TORCH_QUANTISED))}, not {precision}"
        )


def matrices_of(layer: nn.Module) -> tuple[tuple[int, int], ...]:
    """Output and input features of what is quantised in `layer`, which may be on the meta device."""
    shapes = (_weight(linear).shape for _, _, linear in _linears(layer))
    return tuple((rows, columns) for rows, columns in shapes)


def quantised_bytes(layer: nn.Module, precision: Precision) -> int:
    """What `layer`, which may be on the meta device, takes once it is quantised."""
    if precision in FULL_PRECISIONS:
        return weight_bytes(layer)
    weights = [_weight(linear) for _, _, linear in _linears(layer)]
    packed = sum(matrix_bytes(len(weight), weight.shape[1], precision) for weight in weights)
    return weight_bytes(layer) - sum(weight.nbytes for weight in weights) + packed


def weight_bytes(*modules: nn.Module) -> int:
    """What a checkpoint holds of all of them together, tied tensors once; tables that are computed are no weights."""
    tensors = (tensor for module in modules for tensor in module.state_dict(keep_vars=True).values())
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def _linears(layer: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """With the module that holds each, and its name there."""
    for owner in layer.modules():
        for name, part in owner.named_children():
            if isinstance(part, nn.Linear) or type(part).__name__ == _TRANSPOSED:
                yield owner, name, part  # type: ignore[misc]


def _weight(linear: nn.Module) -> torch.Tensor:
    """[out, in]"""
    weight: torch.Tensor = linear.weight  # type: ignore[assignment]
    return weight.t() if type(linear).__name__ == _TRANSPOSED else weight
