"""Reads a stage's own tensors, and no others, from a folder of safetensors into a model built on the meta device."""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

INDEX = "model.safetensors.index.json"


class TensorsMissing(Exception):
    """The checkpoint lacks tensors that the model needs."""


def tensor_files(checkpoint: Path) -> dict[str, Path]:
    """In which file each tensor is."""
    index = checkpoint / INDEX
    if index.exists():
        where: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return {name: checkpoint / file for name, file in where.items()}
    found: dict[str, Path] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def materialise_buffers(model: Any, device: torch.device) -> None:
    """Compute what no checkpoint holds (rotary frequencies, embedding scales), as transformers' own loading does."""
    for module in model.modules():
        computed = [name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None]
        for name in computed:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if computed:
            model._init_weights(module)  # its parameters are still on meta, where this does nothing


def load_weights(model: nn.Module, wanted_ids: set[int], checkpoint: Path, device: torch.device) -> int:
    """Fill in the meta parameters and buffers whose id is in `wanted_ids`; tied ones are read once. Returns bytes.

    Raises:
        TensorsMissing: naming the first few.
    """
    files = tensor_files(checkpoint)
    names: dict[int, list[str]] = {}
    wanted: dict[int, torch.Tensor] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if tensor.is_meta and id(tensor) in wanted_ids:
            names.setdefault(id(tensor), []).append(name)
            wanted[id(tensor)] = tensor
    missing = [aliases[0] for aliases in names.values() if not any(alias in files for alias in aliases)]
    if missing:
        raise TensorsMissing(f"the checkpoint {checkpoint} lacks {len(missing)} tensors, such as {missing[:3]}")
    num_bytes = 0
    for number, aliases in names.items():
        stored = next(alias for alias in aliases if alias in files)
        loaded = _read(files[stored], stored, wanted[number], device)
        num_bytes += loaded.nbytes
        for alias in aliases:
            _assign(model, alias, loaded, is_parameter=isinstance(wanted[number], nn.Parameter))
    return num_bytes


def _read(file: Path, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
    # Opened anew for each tensor: what was mapped is let go at once, so that the peak is the stage's own weights.
    with safe_open(file, "pt") as opened:
        stored: torch.Tensor = opened.get_tensor(name)
        if stored.shape != like.shape:
            raise TensorsMissing(f"{name} is {tuple(stored.shape)} in {file}, the model has {tuple(like.shape)}")
        return stored.to(device=device, dtype=like.dtype, copy=True)


def _assign(model: nn.Module, name: str, tensor: torch.Tensor, *, is_parameter: bool) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if is_parameter:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
