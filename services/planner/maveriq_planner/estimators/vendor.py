"""A prior for GPU types that nobody measured: the vendor's tables. Pure: a vendor's engine in, times and bytes out.

The engine predicts one prompt and one decode step of a model on one stage; layers and ends are told apart by asking for
half the layers too, hops by asking for two stages.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maveriq.contracts import Basis, ModelFacts, Workload
from maveriq_planner.arrays import Array
from maveriq_planner.estimate import Errors, Footprint, Kind, Times, dividing, fullest_ms, micro_batches
from maveriq_planner.memory import counted
from maveriq_planner.workloads import decoding_tokens

_BATCHES = np.array([1.0, 2, 4, 8, 16, 32, 64])
_ERROR = 0.25  # assumed: the vendor says nothing of it, and here it was not measured
_TP_DEGREES = (1, 2, 4, 8)
_MAX_PP = 8


class VendorEngine(Protocol):
    """A model at one TP and PP degree; ms."""

    def predict_prefill_latency(self, bs: int, isl: int) -> float: ...

    def predict_decode_latency(self, bs: int, isl: int, osl: int = 2) -> float: ...


@dataclass(frozen=True, slots=True)
class VendorMemory:
    """What the vendor lays aside on each GPU."""

    other_bytes: int
    communication_bytes: Mapping[int, int]
    """By TP degree."""
    activation_bytes: Mapping[int, float]
    """Of one token and one element as wide as the attention, by TP degree."""
    least_activation_bytes: int


@dataclass(frozen=True, slots=True)
class VendorLaw:
    kind: Kind
    facts: ModelFacts
    compile: Callable[[int, int, int], VendorEngine]
    """TP, PP and number of layers -> engine."""
    memory: VendorMemory
    basis: Basis = Basis.AICONFIGURATOR
    others: float = 0.0

    @property
    def tp_degrees(self) -> tuple[int, ...]:
        return dividing(_TP_DEGREES, self.facts)

    @property
    def max_pp(self) -> int:
        return min(_MAX_PP, self.facts.num_layers)

    @property
    def max_batch(self) -> int:
        return int(_BATCHES[-1])

    def times(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Times:
        num_layers = self.facts.num_layers
        half = max(1, num_layers // 2)
        whole, part = self.compile(tp, 1, num_layers), self.compile(tp, 1, half)
        staged = self.compile(tp, 2, num_layers) if self.max_pp > 1 else whole
        context = int(decoding_tokens(workload))
        steps, fewer, hopped = (
            np.array([engine.predict_decode_latency(int(b), context) for b in _BATCHES])
            for engine in (whole, part, staged)
        )
        prompt, prompt_part, prompt_hopped = (
            engine.predict_prefill_latency(1, workload.input_tokens) for engine in (whole, part, staged)
        )
        groups = micro_batches(pps, batches)
        each = batches / groups
        layer = _layers(steps, fewer, num_layers, half)
        layer_ms, through_ms, hop_ms = (
            np.interp(each, _BATCHES, values) for values in (layer, steps, np.maximum(hopped - steps, 0.0))
        )
        ends_ms = np.maximum(through_ms - num_layers * layer_ms, 0.0)
        stage_ms = fullest_ms(num_layers, pps[:, None], layer_ms, ends_ms)
        hops = pps - 1
        prompt_layer = float(_layers(np.array([prompt]), np.array([prompt_part]), num_layers, half)[0])
        prompt_ends = np.full(len(pps), max(prompt - num_layers * prompt_layer, 0.0))
        return Times(
            prefill_ms=prompt + hops * max(prompt_hopped - prompt, 0.0),
            prefill_stage_ms=fullest_ms(num_layers, pps, np.full(len(pps), prompt_layer), prompt_ends),
            step_ms=np.maximum(through_ms + hops[:, None] * hop_ms, groups * stage_ms),
            layer_ms=layer_ms,
        )

    def errors(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Errors:
        return Errors(np.full(len(pps), _ERROR), np.full((len(pps), len(batches)), _ERROR))

    def footprint(self, tp: int, pps: Array, slots: Array, context_tokens: int) -> Footprint:
        kind = self.kind
        count = counted(self.facts, kind.engine, kind.precision, kind.kv_precision, tp, slots, context_tokens)
        width = self.facts.num_heads * self.facts.head_dim
        activations = (context_tokens + slots) * width * self.memory.activation_bytes[tp]
        activations = np.maximum(activations, self.memory.least_activation_bytes)
        apart = self.memory.other_bytes + self.memory.communication_bytes[tp]
        runtime = np.tile(np.ceil(apart + activations), (len(pps), 1))
        least = np.tile(activations + self.memory.communication_bytes[tp], (len(pps), 1))
        return Footprint(
            count.layer_bytes, count.first_bytes, count.last_bytes, count.tied_saving_bytes, runtime, least,
            runtime + activations,
        )  # fmt: skip


def _layers(whole: Array, part: Array, num_layers: int, half: int) -> Array:
    """ms of one layer; all of the time is the layers' where there is one only."""
    if num_layers == half:
        return whole / num_layers
    return np.maximum(whole - part, 0.0) / (num_layers - half)
