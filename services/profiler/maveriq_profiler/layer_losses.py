"""What a model's output loses by each of its layers alone in a quantised precision: real layers, real weights.

Every layer's output at full precision is kept, so that each trial begins at the layer that it changes. The model's own
forward runs, whatever it does around its layers.
"""

# transformers is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from maveriq.contracts import Precision
from maveriq.torch_layers import quantise

_ROWS = 128  # positions whose distributions are compared at once

Layers = Any
"""An nn.ModuleList."""


def losses(
    model: Any, layers: Layers, parts: Sequence[torch.Tensor], precision: Precision,
    report: Callable[[int], None],
) -> tuple[float, ...]:  # fmt: skip
    """Mean Kullback-Leibler divergence of the next token from full precision's, in nats a token, of each layer.

    Args:
        layers: of the model, all at full precision; they are so again afterwards.
        parts: [number of tokens] each; they are read apart.
        report: told how many passes are done, of one for each layer and part.
    """
    total = [0.0] * len(layers)
    with torch.inference_mode():
        for number, part in enumerate(parts):
            outputs, full = _at_full_precision(model, layers, part)
            for place in range(len(layers)):
                with _begun_at(layers, place, outputs), _quantised(layers, place, precision):
                    total[place] += _divergence(full, _logits(model, part))
                report(number * len(layers) + place + 1)
    return tuple(max(0.0, each / sum(map(len, parts))) for each in total)


def _at_full_precision(model: Any, layers: Layers, part: torch.Tensor) -> tuple[list[Any], torch.Tensor]:
    """What each layer gives on, and the logits [tokens, vocabulary]."""
    outputs: list[Any] = []

    def keep(layer: Any, given: Any, output: Any) -> None:
        outputs.append(output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        return outputs, _logits(model, part)
    finally:
        for hook in hooks:
            hook.remove()


def _logits(model: Any, part: torch.Tensor) -> torch.Tensor:
    """[tokens, vocabulary]"""
    logits: torch.Tensor = model(input_ids=part[None], use_cache=False).logits[0]
    return logits


@contextmanager
def _begun_at(layers: Layers, place: int, outputs: Sequence[Any]) -> Generator[None]:
    """The layers before give what they gave at full precision, without computing it."""

    def known(*_: object, **__: object) -> Any:
        return outputs[place - 1]  # whatever stands before: only the last one's is looked at

    for before in range(place):
        layers[before].forward = known
    try:
        yield
    finally:
        for before in range(place):
            del layers[before].forward


@contextmanager
def _quantised(layers: Layers, place: int, precision: Precision) -> Generator[None]:
    whole = layers[place]
    layers[place] = copy.deepcopy(whole)
    try:
        quantise(layers[place], precision)
        yield
    finally:
        layers[place] = whole


def _divergence(full: torch.Tensor, found: torch.Tensor) -> float:
    """Summed over positions. Both: [tokens, vocabulary]"""
    total = 0.0
    for row in range(0, len(full), _ROWS):
        expected = full[row : row + _ROWS].float().log_softmax(1)
        told = found[row : row + _ROWS].float().log_softmax(1)
        total += float((expected.exp() * (expected - told)).sum(1, dtype=torch.float64).sum())
    return total
