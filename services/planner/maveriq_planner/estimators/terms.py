"""The law's terms of a model's passes, as tables with a shape a column. Pure: a model and shapes in, tables out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from maveriq import law
from maveriq.contracts import ModelFacts, Workload
from maveriq_planner.arrays import Array
from maveriq_planner.estimate import micro_batches
from maveriq_planner.workloads import decoding_tokens

Places = Mapping[str, int]
"""Rows of tables, by the name of the constant."""


@dataclass(frozen=True, slots=True)
class Table:
    """N constants, and shapes: P x B of a step, then P of a prompt."""

    layer: Array  # [N, P x B + P]
    ends: Array  # [N, P x B + P]


def table_of(facts: ModelFacts, rig: law.Rig, places: Places, pps: Array, batches: Array, workload: Workload) -> Table:
    stages = pps[:, None]
    step = law.decode_terms(
        facts, rig, batch=batches / micro_batches(pps, batches), context_tokens=decoding_tokens(workload),
        num_layers=facts.num_layers, num_stages=stages, fullest=np.ceil(facts.num_layers / stages),
    )  # fmt: skip
    prompt = law.prefill_terms(
        facts, rig, batch=1.0, input_tokens=float(workload.input_tokens),
        num_layers=facts.num_layers, num_stages=pps, fullest=np.ceil(facts.num_layers / pps),
    )  # fmt: skip
    shape = (len(pps), len(batches))
    return Table(
        _filled(step.layer, prompt.layer, places, shape), _filled(step.ends, prompt.ends, places, shape)
    )  # fmt: skip


def _filled(step: law.Terms, prompt: law.Terms, places: Places, shape: tuple[int, int]) -> Array:
    """A term whose constant no calibration knows adds nothing."""
    steps = shape[0] * shape[1]
    filled = np.zeros((len(places), steps + shape[0]))
    of_step, of_prompt = filled[:, :steps].reshape(len(places), *shape), filled[:, steps:]
    for part, terms in ((of_step, step), (of_prompt, prompt)):
        for name, value in terms.items():
            at = places.get(name)
            if at is not None:
                part[at] = value
    return filled
