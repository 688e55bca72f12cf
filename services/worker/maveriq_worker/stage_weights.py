"""Reads a stage's own tensors, and no others, from a folder of safetensors into a model built on the meta device."""

# torch, transformers and safetensors are typed in part only.
# pyright: reportPrivateUsage=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

INDEX = "model.safetensors.index.json"


class TensorsMissing(Exception):
    """The checkpoint lacks tensors that the model needs."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    files: Mapping[str, Path]
    """In which file each tensor is."""


def open_checkpoint(folder: Path) -> Checkpoint:
    index = folder / INDEX
    if index.exists():
        where: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return Checkpoint(folder, {name: folder / file for name, file in where.items()})
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return Checkpoint(folder, found)


def load_weights(model: nn.Module, wanted_ids: set[int], checkpoint: Checkpoint, device: torch.device) -> None:
    """Fill in the parameters and meta buffers whose id is in `wanted_ids`; tied ones are read once.

    Raises:
        TensorsMissing: naming the first few.
    """
    files = checkpoint.files
    names: dict[int, list[str]] = {}
    wanted: dict[int, torch.Tensor] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        # A model may draw a parameter on the CPU whatever device it is built on; a computed buffer is in no checkpoint.
        if id(tensor) in wanted_ids and (tensor.is_meta or isinstance(tensor, nn.Parameter)):
            names.setdefault(id(tensor), []).append(name)
            wanted[id(tensor)] = tensor
    missing = [aliases[0] for aliases in names.values() if not any(alias in files for alias in aliases)]
    if missing:
        raise TensorsMissing(f"the checkpoint {checkpoint.folder} lacks {len(missing)} tensors, such as {missing[:3]}")
    for number, aliases in names.items():
        stored = next(alias for alias in aliases if alias in files)
        loaded = _read(files[stored], stored, wanted[number], device)
        if isinstance(wanted[number], nn.Parameter):
            loaded = nn.Parameter(loaded, requires_grad=False)
        for alias in aliases:
            _assign(model, alias, loaded)


def _read(file: Path, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
    # Opened anew for each tensor: what was mapped is let go at once, so that the peak is the stage's own weights.
    with safe_open(file, "pt") as opened:
        stored: torch.Tensor = opened.get_tensor(name)
        if stored.shape != like.shape:
            raise TensorsMissing(f"{name} is {tuple(stored.shape)} in {file}, the model has {tuple(like.shape)}")
        return stored.to(device=device, dtype=like.dtype, copy=True)


def _assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor
