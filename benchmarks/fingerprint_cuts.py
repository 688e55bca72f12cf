"""Which cuts of a model tell most of it? Cuts and the whole model in one run, random weights, one process.

The planner's law of fingerprints is fitted to the samples of each set of cuts and predicts the whole model, which is
measured in the same rounds. Called by `fingerprint_cpu.py --cuts`.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from maveriq.contracts import Fingerprint, ModelFacts, Precision, Sample
from maveriq_planner.latency import fit_decode, fit_prefill
from maveriq_profiler.grid import Grid, Point
from maveriq_profiler.orders import ProbeOrder
from maveriq_profiler.probe import measure

CUTS = ((1, 2), (2, 4), (1, 2, 8), (2, 4, 8), (2, 8), (4, 8))
POINTS = ((1, 32), (4, 32), (8, 32), (1, 128), (1, 512))
BUDGET_S = 60.0
REDUCED: dict[str, Callable[[list[float]], float]] = {
    "median": lambda values: median(map(abs, values)),
    "worst": lambda values: max(values, key=abs),
}


def errors_of_cuts(
    config_json: str, facts: ModelFacts, precision: Precision, device: str, threads: int
) -> dict[str, dict[str, float]]:
    """Median and worst error of each set of cuts, in percent."""
    depths = {num_layers for cuts in CUTS for num_layers in cuts} | {facts.num_layers}
    grid = Grid(
        layers=tuple(sorted(depth for depth in depths if depth <= facts.num_layers)),
        points=tuple(Point(batch=batch, input_tokens=tokens) for batch, tokens in POINTS),
        output_tokens=9,
        min_rounds=3,
        budget_s=BUDGET_S,
    )
    order = ProbeOrder(
        config_json=config_json,
        engine="torch",
        device=device,
        threads=threads,
        precision=precision,
        kv_precision=precision,
        grid=grid,
    )
    samples = measure(order, lambda _: None)
    whole = [sample for sample in samples if sample.num_layers == facts.num_layers]
    return {
        ",".join(map(str, cuts)): _errors(facts, precision, [s for s in samples if s.num_layers in cuts], whole)
        for cuts in CUTS
    }


def _errors(facts: ModelFacts, precision: Precision, cut: list[Sample], whole: list[Sample]) -> dict[str, Any]:
    fingerprint = Fingerprint(
        engine="torch", engine_version=torch.__version__, gpu_type="here", precision=precision, kv_precision=precision,
        tp_degrees=(1,), max_pp=1, hop_ms=0, samples=tuple(cut), cost_s=0,
    )  # fmt: skip
    decode, prefill = fit_decode(facts, fingerprint), fit_prefill(facts, fingerprint)
    off: dict[str, list[float]] = {"decode": [], "prefill": []}
    for s in whole:
        context = s.input_tokens + s.output_tokens / 2
        predicted = float(decode.at_ends(s.batch) + facts.num_layers * decode.at_layer(s.batch, context))
        off["decode"].append(100 * (predicted / s.decode_ms - 1))
        if s.batch == 1:
            predicted = prefill.at_ends(s.input_tokens) + facts.num_layers * prefill.at_layer(s.input_tokens)
            off["prefill"].append(100 * (predicted / s.prefill_ms - 1))
    return {
        f"{what}_{name}": round(reduce(values), 2) for what, values in off.items() for name, reduce in REDUCED.items()
    }
