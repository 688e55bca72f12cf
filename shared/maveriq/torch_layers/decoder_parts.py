"""Which modules of a decoder run before its layers, and which after: what the first and the last stage hold.

Found by running the model up to its first layer, so that no family needs a list of names. The torch engine cuts models
so, the profiler counts and measures them so.
"""

# torch and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a forward raises that is not made for what it is given."""


class Uncuttable(Exception):
    """A model's layers cannot be told from what is around them; says why."""


class Reached(Exception):
    """A forward came to where it was to stop."""


class AddsNothing(nn.Module):
    """In the place of learned positions, which the first stage has added."""

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        return torch.zeros(())


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """Where a model keeps what is divided over stages; names are those of `owner`'s children."""

    owner: Any
    """The module whose forward runs the layers."""
    layers: str
    before: tuple[str, ...]
    """With weights: the embedding; where there are any, learned positions, and the embedding's norm or projection."""
    after: tuple[str, ...]
    """The last norm, which may have no weights, and a projection."""

    @property
    def all_layers(self) -> Any:
        """An nn.ModuleList."""
        return getattr(self.owner, self.layers)

    def modules(self, names: tuple[str, ...]) -> list[nn.Module]:
        return [getattr(self.owner, name) for name in names]

    def cut(self, first_layer: int, num_layers: int, *, is_first: bool, is_last: bool) -> None:
        """Leave these layers, and around them what belongs to such a stage: the rest hands on what it is given."""
        mine = slice(first_layer, first_layer + num_layers)
        setattr(self.owner, self.layers, self.all_layers[mine])
        config = self.owner.config
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[mine]  # forward counts layers from 0
        if not is_first:
            for name, part in zip(self.before, self.modules(self.before), strict=True):
                setattr(self.owner, name, AddsNothing() if isinstance(part, nn.Embedding) else nn.Identity())
            if hasattr(self.owner, "embedding_multiplier"):
                self.owner.embedding_multiplier = 1.0  # Granite scales in forward, whatever comes in
        if not is_last:
            for name in self.after:
                setattr(self.owner, name, nn.Identity())


def find_layers(model: Any, num_layers: int) -> tuple[Any, str]:
    """The outermost nn.ModuleList of `num_layers` entries: the module that holds it, and its name there.

    Raises:
        Uncuttable: there is none.
    """
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not lists:
        raise Uncuttable(f"it keeps no list of its {num_layers} layers that can be counted")
    parent, _, name = min(lists, key=lambda path: path.count(".")).rpartition(".")
    return model.get_submodule(parent), name


def find_parts(model: Any, num_layers: int) -> DecoderParts:
    """
    Args:
        model: on any device, the meta device too.

    Raises:
        Uncuttable
    """
    owner, layers = find_layers(model, num_layers)
    children = {name: part for name, part in owner.named_children() if name != layers}
    table = model.get_input_embeddings()
    if table is None or model.get_output_embeddings() is None:
        raise Uncuttable("it names no embedding or no lm_head; give a decoder-only model")
    called = _called_before(owner, getattr(owner, layers)[0], children, table.weight)
    called |= {name for name, part in children.items() if any(each is table for each in part.modules())}
    before = tuple(name for name in children if name in called and next(children[name].parameters(), None) is not None)
    return DecoderParts(owner, layers, before, tuple(name for name in children if name not in called))


@torch.inference_mode()
def _called_before(owner: Any, layer: nn.Module, children: dict[str, nn.Module], table: torch.Tensor) -> set[str]:
    """Of the children, with one token that the embedding `table` has been read for."""
    called: set[str] = set()

    def note(name: str, *_: object) -> None:
        called.add(name)

    hooks = [part.register_forward_pre_hook(partial(note, name)) for name, part in children.items()]
    hooks.append(layer.register_forward_pre_hook(stop))
    token = table.new_zeros(1, 1, table.shape[1])
    try:
        reach(partial(owner, inputs_embeds=token, use_cache=True))
    finally:
        for hook in hooks:
            hook.remove()
    return called


def stop(*_: object) -> None:
    raise Reached


def reach(forward: Callable[[], object]) -> None:
    """Run until `Reached`. Raises Uncuttable: it came to an end before, or failed."""
    try:
        forward()
    except Reached:
        return
    except FORWARD_ERRORS as error:
        raise Uncuttable(f"its forward fails ({in_a_line(error)})") from error
    raise Uncuttable("its forward does not pass through its layers one by one")


def in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
