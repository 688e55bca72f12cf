"""MaverIQ's published method on the model's own fingerprint. Pure: samples of a few layers in, times of the whole out.

The method says latency of a whole request, a line in output tokens: its slope is a step, the rest the prompt. It has
no memory law for readings of single processes, and no intervals: memory is counted as the law does, and the error is
what the method missed by on its own data with the models left out one at a time (RTX A6000: 5.4 % median, 28 % p90).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maveriq.contracts import Basis, Calibration, Fingerprint, Model, ModelFacts, RunSample, Variant, Workload
from maveriq_planner.arrays import Array
from maveriq_planner.estimate import Errors, Estimator, Footprint, Kind, Times
from maveriq_planner.estimators.sampled import SampledLaw, sampled
from maveriq_planner.maveriq_method import PUBLISHED, START, MaveriqModel, Unmeasured, fit_maveriq
from maveriq_planner.space import NOTHING, rigs_of

_ERROR = 0.284 / 1.645
_LONG = 1000  # output tokens; any number does for a line


@dataclass(frozen=True, slots=True)
class PublishedMethod:
    law: SampledLaw
    """Of the same fingerprint: what it may run as, and its memory."""
    fitted: tuple[tuple[int, MaveriqModel], ...]
    """By prompt length."""
    basis: Basis = Basis.MAVERIQ

    @property
    def kind(self) -> Kind:
        return self.law.kind

    @property
    def others(self) -> float:
        return self.law.others

    @property
    def tp_degrees(self) -> tuple[int, ...]:
        """TP's overhead is read from two GPUs; a fingerprint is of one."""
        return (1,) if 1 in self.law.tp_degrees else ()

    @property
    def max_pp(self) -> int:
        return self.law.max_pp

    @property
    def max_batch(self) -> int:
        return self.law.max_batch

    def times(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Times:
        """Prompts and steps of all stages, one after the other: the method knows no micro-batches."""
        found = [self._at(tp, int(pp), workload.input_tokens) for pp in pps]
        prefill_ms, alone_ms, more_ms = (np.array(values) for values in zip(*found, strict=True))
        step_ms = alone_ms[:, None] + (batches - 1) * more_ms[:, None]
        return Times(prefill_ms, prefill_ms, step_ms, layer_ms=None)

    def errors(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Errors:
        return Errors(np.full(len(pps), _ERROR), np.full((len(pps), len(batches)), _ERROR))

    def footprint(self, tp: int, pps: Array, slots: Array, context_tokens: int) -> Footprint:
        return self.law.footprint(tp, pps, slots, context_tokens)

    def _at(self, tp: int, pp: int, input_tokens: int) -> tuple[float, float, float]:
        """Prompt, step of one request, and what each more adds to it, ms."""
        model = min(self.fitted, key=lambda known: abs(known[0] - input_tokens))[1]
        kind = (self.kind.precision, self.kind.kv_precision)
        by = PUBLISHED.get(kind, START)

        def line(batch: int) -> tuple[float, float]:
            short, long = (model.parts(kind, batch, output).at(tp, pp, by) for output in (1, 1 + _LONG))
            step = max(0.0, long - short) / _LONG
            return max(short, 1e-6), step

        prompt_ms, step_ms = line(1)
        many = next((run.batch for run in model.samples if run.batch > 1), 1)
        more_ms = max(0.0, line(many)[1] - step_ms) / (many - 1) if many > 1 else 0.0
        return prompt_ms, max(step_ms, 1e-6), more_ms


def by_published(
    model: Model,
    facts: ModelFacts,
    fingerprints: Sequence[Fingerprint],
    calibrations: Sequence[Calibration],
    named: Sequence[str] = (),
    context_tokens: int = 0,
) -> tuple[tuple[Estimator, ...], tuple[str, ...]]:
    """Fingerprints only: the method has no use for calibrations."""
    found: list[Estimator] = []
    silent = [f"{c.gpu_type} is calibrated; MaverIQ's method needs a fingerprint" for c in calibrations]
    for rig in rigs_of(fingerprints, ()):
        reasons: defaultdict[str, list[Variant]] = defaultdict(list)
        for variant in model.variants:
            fingerprint = rig.fingerprint_of(variant)
            if fingerprint is None:
                reasons[NOTHING].append(variant)
                continue
            fitted = _fitted(facts, fingerprint)
            if fitted:
                law = sampled(rig.kind(variant, fingerprint.kv_precision), facts, fingerprint)
                found.append(PublishedMethod(law, fitted))
            else:
                reasons["two cuts at a batch of 1 are needed"].append(variant)
        silent += rig.silent(reasons)
    return tuple(found), tuple(silent)


def _fitted(facts: ModelFacts, fingerprint: Fingerprint) -> tuple[tuple[int, MaveriqModel], ...]:
    """One for each prompt length that was read at two depths."""
    found: list[tuple[int, MaveriqModel]] = []
    for tokens in sorted({sample.input_tokens for sample in fingerprint.samples}):
        model = fit_maveriq(facts, _runs(facts, fingerprint, tokens))
        try:
            model.parts((fingerprint.precision, fingerprint.kv_precision), 1, 1)
        except Unmeasured:
            continue
        found.append((tokens, model))
    return tuple(found)


def _runs(facts: ModelFacts, fingerprint: Fingerprint, input_tokens: int) -> list[RunSample]:
    """Those of batches that were read at two depths: the others say nothing to the method."""
    samples = [sample for sample in fingerprint.samples if sample.input_tokens == input_tokens]
    depths = {batch: {s.num_layers for s in samples if s.batch == batch} for batch in {s.batch for s in samples}}
    return [
        RunSample(
            facts=facts, precision=fingerprint.precision, kv_precision=fingerprint.kv_precision,
            layers=(sample.num_layers,), batch=sample.batch, input_tokens=sample.input_tokens,
            output_tokens=sample.output_tokens, prefill_ms=sample.prefill_ms, decode_ms=sample.decode_ms,
        )
        for sample in sorted(samples, key=lambda sample: sample.batch)
        if len(depths[sample.batch]) > 1
    ]  # fmt: skip
