"""Does a fingerprint tell the whole model? Cuts and the whole model, random weights, in one run.

    python benchmarks/fingerprint.py [--shape smollm2-135m] [--device cpu] [--precision fp32] [--json]

The planner's own law is fitted to the samples of each set of cuts and predicts decode and prefill of the whole model,
which is measured in the same rounds. Errors are (predicted - measured) / measured, in percent, over all points.
"""

import argparse
import json
import platform
from statistics import median

import torch
from transformers import AutoConfig

from maveriq.contracts import Fingerprint, ModelFacts, Precision, Sample
from maveriq_planner.latency import fit_decode, fit_prefill
from maveriq_profiler.cutting import config_from
from maveriq_profiler.facts import facts_of
from maveriq_profiler.grid import Grid, Point
from maveriq_profiler.orders import ProbeOrder
from maveriq_profiler.probe import measure

LLAMA = {"model_type": "llama", "tie_word_embeddings": False}
SHAPES = {
    "smollm2-135m": LLAMA | {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "llama-3.2-1b": LLAMA | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": LLAMA | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    },
}  # fmt: skip
CUTS = ((1, 2), (2, 4), (1, 2, 8), (2, 4, 8), (2, 8))


def main() -> None:
    arguments = parse()
    text = json.dumps(SHAPES[arguments.shape])
    config = AutoConfig.for_model(**json.loads(text))
    facts = facts_of(config_from(config.to_json_string(use_diff=False)))
    order = ProbeOrder(
        config_json=config.to_json_string(use_diff=False),
        engine="torch",
        device=arguments.device,
        threads=arguments.threads,
        precision=Precision(arguments.precision),
        grid=Grid(
            layers=(1, 2, 4, 8, facts.num_layers),
            points=tuple(
                Point(batch=batch, input_tokens=tokens) for batch, tokens in ((1, 32), (4, 32), (1, 128), (1, 512))
            ),
            output_tokens=16,
            min_rounds=3,
            budget_s=arguments.budget_s,
        ),
    )
    samples = measure(order, lambda _: None)
    whole = [sample for sample in samples if sample.num_layers == facts.num_layers]
    results = {
        ",".join(map(str, cuts)): errors(facts, order.precision, [s for s in samples if s.num_layers in cuts], whole)
        for cuts in CUTS
    }
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine()
    shown = {
        "machine": f"{device}, torch {torch.__version__}, {arguments.threads} CPU threads",
        "shape": arguments.shape,
        "precision": arguments.precision,
        "whole_decode_ms": {f"{s.batch}x{s.input_tokens}": round(s.decode_ms, 3) for s in whole},
        "error_percent": results,
    }
    print(json.dumps(shown) if arguments.json else table(shown))


def errors(facts: ModelFacts, precision: Precision, cut: list[Sample], whole: list[Sample]) -> dict[str, float]:
    """Median and worst error of decode and prefill, percent."""
    fingerprint = Fingerprint(
        engine="torch", engine_version=torch.__version__, gpu_type="here", precision=precision, kv_precision=precision,
        tp_degrees=(1,), max_pp=1, hop_ms=0, samples=tuple(cut), cost_s=0,
    )  # fmt: skip
    decode, prefill = fit_decode(facts, fingerprint), fit_prefill(facts, fingerprint)
    off = {"decode": [], "prefill": []}
    for s in whole:
        context = s.input_tokens + s.output_tokens / 2
        predicted = decode.at_ends(s.batch) + facts.num_layers * decode.at_layer(s.batch, context)
        off["decode"].append(100 * (predicted / s.decode_ms - 1))
        if s.batch == 1:
            predicted = prefill.at_ends(s.input_tokens) + facts.num_layers * prefill.at_layer(s.input_tokens)
            off["prefill"].append(100 * (predicted / s.prefill_ms - 1))
    return {
        f"{what}_{name}": round(reduce(values), 2)
        for what, values in off.items()
        for name, reduce in (("median", lambda v: median(map(abs, v))), ("worst", lambda v: max(v, key=abs)))
    }


def table(shown: dict[str, object]) -> str:
    rows = [
        f"{shown['shape']} {shown['precision']} on {shown['machine']}",
        f"whole model, ms a step: {shown['whole_decode_ms']}",
    ]
    rows.append(f"{'cuts':10} {'decode median':>14} {'worst':>8} {'prefill median':>15} {'worst':>8}   (percent)")
    results = shown["error_percent"]
    assert isinstance(results, dict)
    for cuts, e in results.items():
        figures = zip(e.values(), (14, 8, 15, 8), strict=True)
        rows.append(f"{cuts:10} " + " ".join(f"{value:{width}.1f}" for value, width in figures))
    return "\n".join(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:<n>")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget-s", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
