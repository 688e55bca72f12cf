"""Reads result files of lm-evaluation-harness (results_*.json): what a variant keeps of full precision's accuracy.

https://github.com/EleutherAI/lm-evaluation-harness: `results` holds for each task "<metric>,<filter>": value.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from maveriq.cli.api import CommandFailed

METRICS = ("acc_norm", "acc", "exact_match", "em", "f1", "pass@1")
"""Shares of right answers; of several in one task the first is compared."""
_MAX_NAMED = 30  # tasks: evidence has a bound, and MMLU alone has 57


@dataclass(frozen=True, slots=True)
class Results:
    path: Path
    tasks: Mapping[str, Mapping[str, float]]
    """Task -> "<metric>,<filter>" -> value; of a group of tasks the group alone."""
    settings: Mapping[str, tuple[object, object]]
    """Task -> how many samples and shots it was run with; None: the file does not say."""


def read_results(path: Path) -> Results:
    """Raises CommandFailed: names the file and what is missing."""
    try:
        found: Any = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise _wrong(f"{path}: is no JSON ({error})") from error
    results = _section(found, "results")
    if not results:
        raise _wrong(f"{path}: has no 'results'; give a results_*.json that lm_eval --output_path wrote")
    tasks = {task: _metrics(values) for task, values in results.items()}
    grouped = {part for group, parts in _section(found, "group_subtasks").items() if tasks.get(group) for part in parts}
    tasks = {task: metrics for task, metrics in tasks.items() if metrics and task not in grouped}
    if not tasks:
        raise _wrong(f"{path}: no task has one of the metrics {', '.join(METRICS)} (tasks: {_named(results)})")
    samples, shots = _section(found, "n-samples"), _section(found, "n-shot")
    return Results(path, tasks, {task: (_effective(samples.get(task)), shots.get(task)) for task in tasks})


def compare(variant: Results, full: Results) -> tuple[float, str]:
    """Mean over the common tasks of the variant's metric over full precision's, and the evidence in words.

    Raises:
        CommandFailed: names the files and what keeps them from being compared.
    """
    common = [task for task in full.tasks if task in variant.tasks]
    if not common:
        raise _wrong(
            f"{variant.path} and {full.path} have no task in common "
            f"({_named(variant.tasks)}; {_named(full.tasks)}); run lm_eval with the same --tasks for both"
        )
    ratios: list[float] = []
    told: list[str] = []
    for task in common:
        metric = _metric(task, variant, full)
        _check_settings(task, variant, full)
        ratios.append(variant.tasks[task][metric] / full.tasks[task][metric])
        told.append(f"{task} {metric.removesuffix(',none')}")
    more = f" and {len(told) - _MAX_NAMED} more" if len(told) > _MAX_NAMED else ""
    evidence = f"mean over {', '.join(told[:_MAX_NAMED])}{more}: {variant.path.name} beside {full.path.name}"
    return sum(ratios) / len(ratios), evidence[:2000]


def _metric(task: str, variant: Results, full: Results) -> str:
    theirs = full.tasks[task]
    both = [metric for metric in theirs if metric in variant.tasks[task]]
    if not both:
        raise _wrong(f"{variant.path}: {task} has none of {', '.join(theirs)}, which {full.path} has")
    chosen = min(both, key=lambda metric: (METRICS.index(metric.split(",")[0]), metric))
    if theirs[chosen] <= 0:
        raise _wrong(f"{full.path}: {chosen} of {task} is {theirs[chosen]:g}, so nothing is relative to it")
    return chosen


def _check_settings(task: str, variant: Results, full: Results) -> None:
    for name, ours, theirs in zip(("samples", "shots"), variant.settings[task], full.settings[task], strict=True):
        if None not in (ours, theirs) and ours != theirs:
            raise _wrong(
                f"{variant.path}: {task} was run with {ours} {name}, in {full.path} with {theirs}; "
                "run both with the same --limit and --num_fewshot"
            )


def _metrics(values: object) -> dict[str, float]:
    if not isinstance(values, dict):
        return {}
    return {
        name: float(value)
        for name, value in cast("dict[str, Any]", values).items()
        if name.split(",")[0] in METRICS and isinstance(value, int | float)
    }


def _section(found: object, name: str) -> dict[str, Any]:
    section: Any = cast("dict[str, Any]", found).get(name) if isinstance(found, dict) else None
    return cast("dict[str, Any]", section) if isinstance(section, dict) else {}


def _effective(samples: object) -> object:
    """`n-samples` says {"original": 10042, "effective": 100}."""
    return cast("dict[str, Any]", samples).get("effective") if isinstance(samples, dict) else samples


def _named(tasks: Mapping[str, object]) -> str:
    return ", ".join(list(tasks)[:_MAX_NAMED]) or "none"


def _wrong(problem: str) -> CommandFailed:
    return CommandFailed(problem, field="--from-lm-eval", exit_code=2)
