"""The law's terms of one run of a model. Pure: a sample in, the terms of its times out."""

from functools import partial
from typing import Literal

from maveriq.contracts import Precision, RunSample
from maveriq.law import Passes, Quantity, Rig, decode_terms, prefill_terms, through_layers

What = Literal["prefill", "decode"]
PASSES: tuple[What, What] = ("prefill", "decode")


def terms_of(sample: RunSample, engine: str, knots: tuple[int, ...], what: What) -> dict[str, Quantity]:
    """Of a pass through all stages: the prompts, or a decode step in the middle of the answer."""
    passes = partial(_passes, sample, engine, knots, what)
    return through_layers(passes, sample.precision, sum(sample.layers), sample.mix)


def _passes(sample: RunSample, engine: str, knots: tuple[int, ...], what: What, precision: Precision) -> Passes:
    rig = Rig(engine, precision, sample.kv_precision, sample.tp, knots)
    shape = {"num_layers": sum(sample.layers), "num_stages": len(sample.layers), "fullest": max(sample.layers)}
    if what == "prefill":
        return prefill_terms(sample.facts, rig, batch=sample.batch, input_tokens=sample.input_tokens, **shape)
    context = sample.input_tokens + sample.output_tokens / 2
    return decode_terms(sample.facts, rig, batch=sample.batch, context_tokens=context, **shape)
