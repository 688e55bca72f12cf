"""What blocks and packing bring to the torch engine's linear layers on a CPU, for each shape and number of rows.

    python benchmarks/cpu_linear.py [--repeats 9] [--json] [--save]

Times of a plain nn.Linear and of what `use_cpu_kernels` makes of it, in turns and medians of both; their ratio is what
counts. Of each shape there are so many matrices that none is still in the second-level cache when it comes again.
"""

import argparse
import json
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch_engine import cpu_name

from maveriq.torch_layers import use_cpu_kernels

RESULT = Path(__file__).with_name("results") / "cpu_linear.json"
SHAPES = ((576, 1536), (1536, 576), (896, 4864), (4864, 896), (2048, 2048), (1024, 3072))
"""In and out features of models of 135M to 1.5B parameters."""
ROWS = (1, 2, 4, 8, 12, 32, 256)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
IN_ALL_BYTES = 96 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} beside the others")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "machine": {"cpu": cpu_name(), "threads": 1, "torch": torch.__version__},
        "time_of_plain": {name: measure(dtype, chosen.repeats) for name, dtype in DTYPES.items()},
    }
    if chosen.save:
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if chosen.json else table(report))


@torch.inference_mode()
def measure(dtype: torch.dtype, repeats: int) -> dict[str, dict[str, float]]:
    """By shape and rows: the time taken, of a plain layer's."""
    found: dict[str, dict[str, float]] = {}
    for columns, outputs in SHAPES:
        one = nn.Linear(columns, outputs, bias=False, dtype=dtype)
        plain = nn.ModuleList(deepcopy(one) for _ in range(max(2, IN_ALL_BYTES // one.weight.nbytes)))
        ours = deepcopy(plain)
        use_cpu_kernels(ours, torch.device("cpu"), head=None)
        found[f"{columns}x{outputs}"] = {str(rows): share(plain, ours, rows, repeats) for rows in ROWS}
    return found


def share(plain: nn.ModuleList, ours: nn.ModuleList, rows: int, repeats: int) -> float:
    layer: Any = plain[0]
    given = torch.randn(1, rows, layer.in_features, dtype=layer.weight.dtype)
    times = [(pass_s(plain, given), pass_s(ours, given)) for _ in range(repeats)]
    return round(median(mine for _, mine in times) / median(theirs for theirs, _ in times), 3)


def pass_s(layers: nn.ModuleList, given: torch.Tensor) -> float:
    begun = perf_counter()
    for layer in layers:
        layer(given)
    return perf_counter() - begun


def table(report: dict[str, Any]) -> str:
    lines = [f"{report['machine']['cpu']}, torch {report['machine']['torch']}: time of a plain layer's, by rows"]
    for name, shapes in report["time_of_plain"].items():
        lines.append(f"\n{name:12}" + "".join(f"{rows:>7}" for rows in ROWS))
        lines += [f"{shape:12}" + "".join(f"{value:7.2f}" for value in by.values()) for shape, by in shapes.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
