"""The measurements that MaverIQ's authors released (one folder of CSV files, or several), as samples.

`full_model.csv` and `fingerprint.csv` hold a prompt of about 923 tokens, the others one of about 9; latency is of the
whole request in s, memory in GiB summed over the GPUs.
"""

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import FalconConfig, GPTJConfig, LlamaConfig

from maveriq.contracts import ModelFacts, Precision, RunSample
from maveriq_profiler.facts import facts_of

GIB = 2**30
PROMPT_TOKENS = {
    "full_model": 923, "fingerprint": 923, "full_model_batch": 9, "fingerprint_batch": 9, "uneven_pipeline": 9,
}  # fmt: skip
BUILT_TOKENS = 1024  # trtllm-build's longest prompt, whatever is read: its activations have room for that
NEEDED = ("full_model", "fingerprint")

PRECISIONS = {
    "float16": Precision.FP16,
    "bfloat16": Precision.BF16,
    "fp8": Precision.FP8,
    "int8": Precision.INT8,
    "int4": Precision.INT4_CHANNEL,
    "int4_gptq": Precision.INT4,
}
NOT_MEASURED = ("", "nan", "none", "oom")
REPEATED = "full_model_pruned"
PRUNED = "llama-2-7b-"  # zeros among the weights, which TensorRT-LLM reads like any others


@dataclass(frozen=True, slots=True)
class Row:
    """One measured run."""

    table: str
    """File that it is from, without .csv."""
    model: str
    sample: RunSample
    build_s: float
    """Making the cut model and its engine; rows that differ in output length share it."""
    run_s: float

    @property
    def latency_ms(self) -> float:
        assert self.sample.e2e_ms is not None, "every released row has a latency"
        return self.sample.e2e_ms

    @property
    def memory_gib(self) -> float:
        assert self.sample.memory_bytes is not None, "every released row has a memory"
        return self.sample.memory_bytes / GIB

    @property
    def num_gpus(self) -> int:
        return self.sample.tp * len(self.sample.layers)


def gpu_seconds(rows: Iterable[Row]) -> float:
    """What making and measuring them took."""
    builds: dict[object, float] = {}
    spent = 0.0
    for row in rows:
        sample = row.sample
        engine = (row.table, row.model, sample.tp, sample.layers, sample.precision, sample.kv_precision, sample.batch)
        builds.setdefault(engine, row.build_s * row.num_gpus)
        spent += row.run_s * row.num_gpus
    return spent + sum(builds.values())


def read(folders: Sequence[Path], shapes: Mapping[str, ModelFacts] | None = None) -> list[Row]:
    """All rows of all folders, each once; how many say nothing here, and why, goes to stderr.

    Args:
        shapes: of models beside the released ones, by name.

    Raises SystemExit: a file that is needed is in none of them, or a cell cannot be read.
    """
    rows: dict[str, Row] = {}
    left_out: Counter[str] = Counter()
    for table in PROMPT_TOKENS:
        files = [path for folder in folders if (path := folder / f"{table}.csv").is_file()]
        if table in NEEDED and not files:
            raise SystemExit(f"{table}.csv is in none of {', '.join(map(str, folders))}")
        for path in files:
            for row in _rows(path, table, shapes or {}, left_out):
                rows.setdefault(f"{table} {row.model} {row.sample.model_dump_json(exclude={'facts'})}", row)
    for why, count in left_out.items():
        print(f"{count} rows left out: {why}", file=sys.stderr)
    return list(rows.values())


def read_repeats(folders: Sequence[Path]) -> list[Row]:
    """Runs of pruned models, which are runs of the whole one again; not among `read`'s. None: no folder has them."""
    files = [path for folder in folders if (path := folder / f"{REPEATED}.csv").is_file()]
    return [row for path in files for row in _rows(path, REPEATED, {}, Counter())]


def _rows(path: Path, table: str, shapes: Mapping[str, ModelFacts], left_out: Counter[str]) -> Iterable[Row]:
    with path.open(newline="") as file:
        for number, cells in enumerate(csv.DictReader(file), start=2):
            try:
                yield _row(cells, table, shapes)
            except Unusable as problem:
                left_out[str(problem)] += 1
            except KeyError as problem:
                raise SystemExit(f"{path}: it has no column {problem}") from problem
            except (TypeError, ValueError) as problem:
                raise SystemExit(f"{path}, line {number}: {problem}") from problem


class Unusable(ValueError):
    """A row says nothing here, and why."""


def _row(cells: dict[str, str], table: str, shapes: Mapping[str, ModelFacts]) -> Row:
    if cells["DTYPE"] not in PRECISIONS:
        raise Unusable(f"DTYPE {cells['DTYPE']} is none of {', '.join(PRECISIONS)}")
    if any(cells[name].strip().lower() in NOT_MEASURED for name in ("Latency", "Memory-After-Run")):
        raise Unusable("they have no latency or no memory")
    layers = tuple(int(number) for number in cells["PP_Map"].split())
    sample = RunSample(
        facts=facts_named(cells["Model"], shapes),
        precision=PRECISIONS[cells["DTYPE"]],
        kv_precision=Precision.INT8 if cells["INT8_KV_Cache"] == "True" else Precision.FP16,
        tp=int(cells["TP"]),
        layers=layers,
        batch=int(cells["Batch_Size"]),
        input_tokens=PROMPT_TOKENS["full_model" if table == REPEATED else table],
        output_tokens=int(cells["Output_Lenght"]),
        e2e_ms=float(cells["Latency"]) * 1e3,
        room_tokens=int(cells["Batch_Size"]) * BUILT_TOKENS,
        memory_bytes=round(float(cells["Memory-After-Run"]) * GIB),
    )
    build_s = sum(float(cells.get(f"Time-{name}") or 0) for name in ("Gen-Fingerprint", "Gen-Graph"))
    return Row(table, cells["Model"], sample, build_s, float(cells.get("Time-Prof") or 0))


def facts_named(model: str, shapes: Mapping[str, ModelFacts]) -> ModelFacts:
    """Raises Unusable: no config.json is known by that name."""
    known = "llama-2-7b" if model.startswith(PRUNED) else model
    if known in shapes:
        return shapes[known]
    if known not in _CONFIGS:
        raise Unusable(f"the shape of {model} is not known: give it with --model {model}=DIR, where its config.json is")
    return _facts(known)


@cache
def _facts(model: str) -> ModelFacts:
    return facts_of(_CONFIGS[model])


def _llama(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int, num_kv_heads: int) -> Any:
    return LlamaConfig(
        vocab_size=32000, hidden_size=hidden_size, intermediate_size=intermediate_size,
        num_hidden_layers=num_layers, num_attention_heads=num_heads, num_key_value_heads=num_kv_heads,
        max_position_embeddings=4096,
    )  # fmt: skip


def _falcon(hidden_size: int, num_layers: int, num_heads: int, **more: Any) -> Any:
    return FalconConfig(
        vocab_size=65024, hidden_size=hidden_size, num_hidden_layers=num_layers, num_attention_heads=num_heads,
        parallel_attn=True, bias=False, **more,
    )  # fmt: skip


_CONFIGS = {
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8),
    "falcon-7b": _falcon(4544, 32, 71, multi_query=True, new_decoder_architecture=False),
    "falcon-40b": _falcon(8192, 60, 128, num_kv_heads=8, new_decoder_architecture=True),
    "gptj-6b": GPTJConfig(),
}
