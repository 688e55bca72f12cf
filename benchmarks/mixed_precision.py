"""What does a precision for each layer bring over one for all of them, at equal memory? Perplexity of real layers.

    python benchmarks/mixed_precision.py [--budgets 13] [--sensitivity-tokens 1024] [--tokens 1536] [--plot FILE.png]
                                         [--json] [--save]

SmolLM2-135M-Instruct, quantised by the torch engine's own code. What each layer loses is measured on one text, as
`maveriq accuracy --layers` does (texts/moby_dick.txt); for each budget of bytes, from full precision's down to that of
4 bits, `maveriq_planner.quantize` chooses every layer's precision; and that is evaluated on another text
(texts/mixed_prose.txt), beside the most precise uniform model that fits the same budget. Embedding, lm_head, norms and
activations are fp32 or bf16 all through the model, for both: of the two the plan takes what loses less by the first
text. Budgets are the sizes of the uniform models, and sizes between. `nats` is the mean divergence of the next token
from full precision's; `worse` by how much the plan's perplexity is above uniform's, in standard errors of that
difference over the text's tokens: below 0 it is better, and within --noise of 0 the text cannot tell them apart.
"""

import argparse
import asyncio
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from quantised_models import DTYPES, Kit, Plan, Reading, Text, between, standard_errors
from torch_engine import CACHE, gguf
from transformers import AutoTokenizer

from maveriq.contracts import Precision
from maveriq.contracts.accuracy import LAYER_PRECISIONS
from maveriq.torch_layers import weight_bytes
from maveriq_planner.quantize import Choice, quantize
from maveriq_planner.quantizing.pipeline import Pipeline, Stage, Weights
from maveriq_profiler.accuracy import PART_TOKENS
from maveriq_profiler.layer_losses import losses
from maveriq_worker.checkpoints import prepare

RESULT = Path(__file__).parent / "results" / "mixed_precision.json"
TEXTS = Path(__file__).parent / "texts"
MIB = 2**20


@dataclass(frozen=True)
class Known:
    """What the first text tells."""

    by_layers: Mapping[Precision, Sequence[float]]
    """Nats a token by each layer alone in a quantised precision."""
    together: Mapping[Precision, float]
    """By all layers in it."""
    by_ends: Mapping[Precision, float]
    """By the whole model in a full precision."""

    def lost(self, plan: Plan) -> float:
        full, precisions = plan
        return self.by_ends[full] + sum(
            self.by_layers[precision][place] for place, precision in enumerate(precisions) if precision is not full
        )


def known_of(kit: Kit, tokens: torch.Tensor) -> Known:
    model, layers = kit.whole()
    parts = torch.split(tokens, PART_TOKENS)
    by_layers = {p: losses(model, layers, parts, p, lambda done: None) for p in LAYER_PRECISIONS}
    text = Text(tokens, model)
    together = {p: text.read(kit.model(kit.uniform(Precision.FP32, p))).nats for p in LAYER_PRECISIONS}
    by_ends = {p: text.read(kit.model(kit.uniform(p, p))).nats for p in DTYPES}
    return Known(by_layers, together, by_ends)


def planned(kit: Kit, known: Known, budget_bytes: float) -> tuple[Plan, Choice]:
    """Least loss by the first text within the budget. Raises ValueError: nothing fits."""
    found: list[tuple[float, Plan, Choice]] = []
    for full in DTYPES:
        precisions, sizes = kit.precisions(full), kit.layer_bytes(full)
        room = budget_bytes - kit.ends_bytes(full)
        if room < kit.num_layers * min(sizes):
            continue
        none = [0.0] * kit.num_layers
        lost = np.array([known.by_layers.get(precision, none) for precision in precisions]).T  # [layers, precisions]
        free = (0.0,) * len(precisions)
        stage = Stage("one", room, tuple(map(float, sizes)), free, free)
        choice = quantize([Pipeline((stage,), Weights(0.0, 0.0, theta=1.0), lost, 1, 1)])
        plan = full, tuple(precisions[place] for place in choice.split.precisions)
        found.append((known.lost(plan), plan, choice))
    _, plan, choice = min(found, key=lambda each: each[0])
    return plan, choice


def uniform_plans(kit: Kit) -> dict[str, Plan]:
    """Most precise first: by bits of the layers, then of the ends."""
    plans: dict[str, Plan] = {}
    for precision in (Precision.FP32, Precision.BF16, *LAYER_PRECISIONS):
        for full in DTYPES:
            if precision in kit.precisions(full):
                label = str(precision) if precision is full else f"{precision}, {full} ends"
                plans[label] = kit.uniform(full, precision)
    return plans


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    begun = perf_counter()
    folder = asyncio.run(prepare(str(gguf()), Precision.FP32, CACHE))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    first, second = (
        torch.tensor(tokenizer(path.read_text())["input_ids"][:most])
        for path, most in (
            (arguments.sensitivity_text, arguments.sensitivity_tokens),
            (arguments.text, arguments.tokens),
        )
    )
    kit = Kit(folder)
    known = known_of(kit, first)
    sensitivity_s = perf_counter() - begun
    plans = uniform_plans(kit)
    text = Text(second, kit.whole()[0])
    read = {plan: text.read(kit.model(plan)) for plan in plans.values()}
    sizes = {label: kit.size(plan) for label, plan in plans.items()}
    budgets = between(list(sizes.values()), arguments.budgets, sizes["int8, bf16 ends"])
    points = [point(kit, known, plans, text, read, budget) for budget in budgets]
    return {
        "machine": f"{cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}",
        "model": "SmolLM2-135M-Instruct",
        "sensitivity": {"text": arguments.sensitivity_text.name, "tokens": len(first), "s": round(sensitivity_s, 1),
                        "added": {p: round(sum(lost), 6) for p, lost in known.by_layers.items()},
                        "together": {p: round(lost, 6) for p, lost in known.together.items()}},
        "evaluation": {"text": arguments.text.name, "tokens": len(second)},
        "uniform": {label: {"mib": round(sizes[label] / MIB, 2), **figures(read[plan])}
                    for label, plan in plans.items()},
        "points": points,
        "worst": max(each["worse"] for each in points),
        "never_worse": all(each["worse"] <= arguments.noise for each in points),
        "s": round(perf_counter() - begun, 1),
    }  # fmt: skip


def point(
    kit: Kit, known: Known, plans: Mapping[str, Plan], text: Text, read: dict[Plan, Reading], budget_bytes: int
) -> dict[str, Any]:
    label = next(label for label, plan in plans.items() if kit.size(plan) <= budget_bytes)
    plan, choice = planned(kit, known, budget_bytes)
    ours_bytes = weight_bytes(kit.model(plan))
    if not ours_bytes == kit.size(plan) <= budget_bytes:
        raise SystemExit(f"{ours_bytes} bytes where {kit.size(plan)} were counted, of {budget_bytes}")
    if plan not in read:
        read[plan] = text.read(kit.model(plan))
    ours, theirs = read[plan], read[plans[label]]
    full, precisions = plan
    return {
        "budget_mib": round(budget_bytes / MIB, 2),
        "ours": {"mib": round(ours_bytes / MIB, 2), **figures(ours), "predicted_nats": round(known.lost(plan), 6),
                 "gap": choice.gap, "ends": full, "layers": {p: precisions.count(p) for p in dict.fromkeys(precisions)},
                 "precisions": list(precisions)},
        "uniform": {"precision": label, "mib": round(kit.size(plans[label]) / MIB, 2), **figures(theirs)},
        "worse": round(standard_errors(ours.nlls - theirs.nlls), 2),
    }  # fmt: skip


def figures(reading: Reading) -> dict[str, float]:
    return {"perplexity": round(reading.perplexity, 4), "nats": round(reading.nats, 6)}


def table(shown: Mapping[str, Any]) -> str:
    lines = [
        f"{shown['machine']}; {shown['s']:.0f} s",
        f"{'MiB':>7} {'ours':>8} {'uniform':>8} {'worse':>6} {'nats':>9} {'uniform':>9}  uniform is       ours is",
    ]
    for each in shown["points"]:
        ours, theirs = each["ours"], each["uniform"]
        mix = ", ".join(f"{count} x {precision}" for precision, count in ours["layers"].items())
        lines.append(
            f"{each['budget_mib']:7.1f} {ours['perplexity']:8.3f} {theirs['perplexity']:8.3f} {each['worse']:+6.1f} "
            f"{ours['nats']:9.6f} {theirs['nats']:9.6f}  {theirs['precision']:16} {mix}; {ours['ends']} ends"
        )
    lost = shown["sensitivity"]
    told = ", ".join(f"{p}: {lost['added'][p]:.4f} and {lost['together'][p]:.4f}" for p in lost["added"])
    end = f"never worse: {shown['never_worse']} (at most {shown['worst']:+.1f} standard errors)"
    return "\n".join([*lines, f"nats by all layers, each alone and added, and together: {told}", end])


def plot(shown: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    points = shown["points"][::-1]
    memory = [each["budget_mib"] for each in points]
    theirs, ours = ([each[whose]["perplexity"] for each in points] for whose in ("uniform", "ours"))
    axes.plot(memory, theirs, color="0.6", drawstyle="steps-post", label="most precise uniform model that fits")
    axes.plot(memory, ours, "o-", color="tab:blue", markersize=5, label="a precision for each layer")
    for label, each in shown["uniform"].items():
        axes.plot(each["mib"], each["perplexity"], "s", color="0.45", markersize=3.5, zorder=3)
        axes.annotate(label, (each["mib"], each["perplexity"]), fontsize=7, color="0.3", rotation=35, xytext=(2, 5),
                      textcoords="offset points")  # fmt: skip
    axes.set(
        xlabel="MiB of weights", ylabel="perplexity", title=f"{shown['model']}, {shown['evaluation']['tokens']} tokens"
    )
    axes.set_ylim(top=max(theirs) * 1.12)
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    arguments = parse()
    shown = measured(arguments)
    if arguments.save:
        RESULT.write_text(json.dumps(shown, indent=2) + "\n")
    if arguments.plot is not None:
        plot(shown, arguments.plot)
    print(json.dumps(shown) if arguments.json else table(shown))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, default=13)
    parser.add_argument("--sensitivity-text", type=Path, default=TEXTS / "moby_dick.txt")
    parser.add_argument("--sensitivity-tokens", type=int, default=1024)
    parser.add_argument("--text", type=Path, default=TEXTS / "mixed_prose.txt")
    parser.add_argument("--tokens", type=int, default=1536)
    parser.add_argument("--noise", type=float, default=2.0, help="standard errors that are no difference")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} in benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
