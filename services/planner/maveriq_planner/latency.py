"""How long a model's layers and ends take. Pure: samples in, times at any shape out. See docs/law.md."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from maveriq.contracts import BYTES_PER_ELEMENT, Fingerprint, ModelFacts, Sample
from maveriq_planner.arrays import Array
from maveriq_planner.least_squares import Uncertainty, fit_non_negative, uncertainty

_CONTEXT_SPREAD = 1.5  # contexts nearer to each other than this tell attention from noise no longer


@dataclass(frozen=True, slots=True)
class DecodeLaw:
    """One decode step of b requests with c tokens of context each, through n layers, takes

    ends(b) + n * (layer(b) + kv * b * max(0, c - context)).

    ends and layer are known at the measured batches, linear between them and never fall with b.
    """

    batches: tuple[int, ...]
    """Measured, ascending."""
    ends_ms: tuple[float, ...]
    """Embedding, lm_head and host, at each of `batches`."""
    layer_ms: tuple[float, ...]
    """One layer, at each of `batches`."""
    kv_ms: float
    """Reading one token's keys and values, per layer."""
    context_tokens: float
    """Context whose reading layer_ms contains already; 0 where it was measured apart."""
    uncertainty: Uncertainty
    """Of the increments of layer_ms, those of ends_ms, and kv_ms where it was fitted."""

    def at_ends(self, batch: Array | float) -> Array:
        """Below the smallest measured batch its time, which is too much rather than too little."""
        return np.asarray(np.interp(batch, self.batches, self.ends_ms))

    def at_layer(self, batch: Array | float, context_tokens: float) -> Array:
        beyond = max(0.0, context_tokens - self.context_tokens)
        layer: Array = np.interp(batch, self.batches, self.layer_ms) + self.kv_ms * np.asarray(batch) * beyond
        return layer

    def deviation_ms(self, num_layers: int, batch: Array, context_tokens: float) -> Array:
        """Standard error of ends + num_layers x layer."""
        known = np.asarray(self.batches, dtype=float)
        below = np.concatenate([[known[0] - 1], known[:-1]])
        reached = np.clip((batch[..., None] - below) / (known - below), 0.0, 1.0)
        reached[..., 0] = 1.0
        rows = np.concatenate([num_layers * reached, reached], axis=-1)
        if self.context_tokens == 0.0:
            rows = np.concatenate([rows, num_layers * (batch * context_tokens)[..., None]], axis=-1)
        return self.uncertainty.of(rows)


@dataclass(frozen=True, slots=True)
class PrefillLaw:
    """Reading b prompts of N tokens through n layers takes

    ends + ends_token * bN + n * (layer + layer_token * bN + flop * bN * (2P + 2N * heads * head_dim)),
    P the parameters of a layer: GEMMs and attention, as in the law fitted to MaverIQ's data.
    """

    flop_ms: float
    layer_token_ms: float
    layer_fixed_ms: float
    ends_token_ms: float
    ends_fixed_ms: float
    layer_params: int
    attention_width: int
    """heads x head_dim."""
    uncertainty: Uncertainty

    def deviation_ms(self, num_layers: int, input_tokens: int) -> float:
        """Standard error of ends + num_layers x layer."""
        flops = _prefill_flops(self.layer_params, self.attention_width, 1, input_tokens)
        row = [num_layers * flops, num_layers * input_tokens, num_layers, input_tokens, 1.0]
        return float(self.uncertainty.of(np.array(row)))

    def at_ends(self, input_tokens: int) -> float:
        return self.ends_fixed_ms + self.ends_token_ms * input_tokens

    def at_layer(self, input_tokens: int) -> float:
        flops = _prefill_flops(self.layer_params, self.attention_width, 1, input_tokens)
        return self.layer_fixed_ms + self.layer_token_ms * input_tokens + self.flop_ms * flops


def fit_decode(facts: ModelFacts, fingerprint: Fingerprint) -> DecodeLaw:
    samples = fingerprint.samples
    batches = tuple(sorted({sample.batch for sample in samples}))
    apart = _contexts_vary(samples)
    rows: list[list[float]] = []
    for s in samples:
        reached = [float(s.batch >= batch) for batch in batches]
        row = [s.num_layers * flag for flag in reached] + reached
        rows.append(row + [s.num_layers * s.batch * _context(s)] * apart)
    readings = [sample.decode_ms for sample in samples]
    constants = fit_non_negative(rows, readings)
    unsure = uncertainty(rows, readings, constants)
    layer_ms = tuple(accumulate(constants[: len(batches)]))
    ends_ms = tuple(accumulate(constants[len(batches) : 2 * len(batches)]))
    if apart:
        return DecodeLaw(batches, ends_ms, layer_ms, constants[-1], 0.0, unsure)
    return DecodeLaw(batches, ends_ms, layer_ms, _kv_ms_as_weights(facts, fingerprint, layer_ms[0]),
                     max(_context(sample) for sample in samples), unsure)  # fmt: skip


def fit_prefill(facts: ModelFacts, fingerprint: Fingerprint) -> PrefillLaw:
    width = facts.num_heads * facts.head_dim
    rows: list[list[float]] = []
    for s in fingerprint.samples:
        tokens = s.batch * s.input_tokens
        flops = _prefill_flops(facts.layer_params, width, s.batch, s.input_tokens)
        rows.append([s.num_layers * flops, float(s.num_layers * tokens), float(s.num_layers), float(tokens), 1.0])
    readings = [sample.prefill_ms for sample in fingerprint.samples]
    flop, layer_token, layer_fixed, ends_token, ends_fixed = constants = fit_non_negative(rows, readings)
    unsure = uncertainty(rows, readings, constants)
    return PrefillLaw(flop, layer_token, layer_fixed, ends_token, ends_fixed, facts.layer_params, width, unsure)


def _prefill_flops(layer_params: int, attention_width: int, batch: int, input_tokens: int) -> float:
    return batch * input_tokens * (2.0 * layer_params + 2.0 * input_tokens * attention_width)


def _context(sample: Sample) -> float:
    """Tokens that a decode step of the sample finds in the cache, on average."""
    return sample.input_tokens + sample.output_tokens / 2


def _contexts_vary(samples: Sequence[Sample]) -> bool:
    contexts: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for sample in samples:
        contexts[sample.num_layers, sample.batch].append(_context(sample))
    return any(max(of_shape) >= _CONTEXT_SPREAD * min(of_shape) for of_shape in contexts.values())


def _kv_ms_as_weights(facts: ModelFacts, fingerprint: Fingerprint, layer_ms: float) -> float:
    """As slow as a layer's weights at the smallest batch: an upper bound, as that time does more than read."""
    kv_bytes = 2 * facts.num_kv_heads * facts.head_dim * BYTES_PER_ELEMENT[fingerprint.kv_precision]
    return layer_ms * kv_bytes / (facts.layer_params * BYTES_PER_ELEMENT[fingerprint.precision])
