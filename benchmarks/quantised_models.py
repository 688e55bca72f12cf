"""One model in every precision of the torch engine, put together layer by layer, and what it says of a text."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from maveriq.contracts import Precision
from maveriq.contracts.accuracy import LAYER_PRECISIONS
from maveriq.torch_layers import quantise, weight_bytes
from maveriq_profiler.accuracy import PART_TOKENS
from maveriq_profiler.cutting import layers_of

DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}
Plan = tuple[Precision, tuple[Precision, ...]]
"""Of embedding, lm_head and activations; of each layer."""


class Kit:
    """The model in every precision, so that any plan is put together of what is there."""

    def __init__(self, folder: Path) -> None:
        self._models: dict[Precision, Any] = {}
        self._layers: dict[tuple[Precision, Precision], list[Any]] = {}
        for full, dtype in DTYPES.items():
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
            self._models[full] = model
            self._layers[full, full] = list(self._list(model))
            for precision in LAYER_PRECISIONS:
                made = [copy.deepcopy(layer) for layer in self._layers[full, full]]
                for layer in made:
                    quantise(layer, precision)
                self._layers[full, precision] = made

    @property
    def num_layers(self) -> int:
        return len(self._layers[Precision.FP32, Precision.FP32])

    def precisions(self, full: Precision) -> tuple[Precision, ...]:
        return (full, *LAYER_PRECISIONS)

    def layer_bytes(self, full: Precision) -> tuple[int, ...]:
        """Of one layer, in each precision."""
        return tuple(weight_bytes(self._layers[full, precision][0]) for precision in self.precisions(full))

    def ends_bytes(self, full: Precision) -> int:
        """Of embedding, lm_head and the last norm."""
        layers = sum(weight_bytes(layer) for layer in self._layers[full, full])
        return weight_bytes(self.model(self.uniform(full, full))) - layers

    def size(self, plan: Plan) -> int:
        """Bytes of weights, counted; `weight_bytes` of the model must be the same."""
        full, precisions = plan
        sizes = dict(zip(self.precisions(full), self.layer_bytes(full), strict=True))
        return self.ends_bytes(full) + sum(sizes[precision] for precision in precisions)

    def uniform(self, full: Precision, precision: Precision) -> Plan:
        return full, (precision,) * self.num_layers

    def model(self, plan: Plan) -> Any:
        """Until the next is asked for."""
        full, precisions = plan
        model = self._models[full]
        layers = self._list(model)
        for place, precision in enumerate(precisions):
            layers[place] = self._layers[full, precision][place]
        return model

    def whole(self) -> tuple[Any, Any]:
        """Full precision, and its list of layers."""
        model = self.model(self.uniform(Precision.FP32, Precision.FP32))
        return model, self._list(model)

    @staticmethod
    def _list(model: Any) -> Any:
        return layers_of(model, model.config.num_hidden_layers)


@dataclass(frozen=True)
class Reading:
    """What a model says of a text."""

    nlls: np.ndarray  # [tokens but each part's first]
    nats: float
    """From full precision's distributions, mean over all tokens."""

    @property
    def perplexity(self) -> float:
        return exp(float(self.nlls.mean()))


class Text:
    """Tokens in parts that are read apart, and what full precision says of them."""

    def __init__(self, tokens: torch.Tensor, whole: Any) -> None:
        self._parts = torch.split(tokens, PART_TOKENS)
        with torch.inference_mode():
            self._full = [_distributions(whole, part) for part in self._parts]

    @torch.inference_mode()
    def read(self, model: Any) -> Reading:
        nlls: list[torch.Tensor] = []
        nats = 0.0
        for part, full in zip(self._parts, self._full, strict=True):
            found = _distributions(model, part)
            nlls.append(-found[:-1].gather(1, part[1:, None]).squeeze(1))
            nats += float((full.exp() * (full - found)).sum(1, dtype=torch.float64).sum())
        return Reading(torch.cat(nlls).double().numpy(), nats / sum(map(len, self._parts)))


def _distributions(model: Any, part: torch.Tensor) -> torch.Tensor:
    """Logarithms, [tokens, vocabulary]."""
    logits: torch.Tensor = model(input_ids=part[None], use_cache=False).logits[0]
    return logits.float().log_softmax(1)


def standard_errors(differences: np.ndarray) -> float:
    """Of their mean from 0; 0 where there are no differences."""
    error = float(differences.std(ddof=1)) / sqrt(len(differences))
    mean = float(differences.mean())
    return 0.0 if mean == 0 else mean / error if error else inf


def between(sizes: Sequence[int], count: int, scarce: int) -> list[int]:
    """These sizes and others between, `count` in all, the largest first: where two are furthest apart in proportion,
    four times as many below `scarce`.
    """
    found = sorted(set(sizes))
    while len(found) < count:
        gaps = [np.log(right / left) * (4 if right <= scarce else 1) for left, right in pairwise(found)]
        at = int(np.argmax(gaps))
        found.insert(at + 1, int(sqrt(found[at] * found[at + 1])))
    return found[::-1]
