"""Calibrations in words: how far one is, and how far it is to be trusted. Pure: contracts in, text out."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from maveriq.cli.figures import amount
from maveriq.contracts import Calibration, CalibrationProgressed, Residuals


def progress_row(news: CalibrationProgressed) -> str:
    """`NVIDIA L4 (torch): 3 of 5 models, 41 of 120 GPU-seconds; measuring torch|deep|bf16`."""
    row = f"{news.gpu_type} ({news.engine}): {news.num_done} of {news.num_planned} models, "
    row += f"{news.spent_s:.0f} of {news.budget_s:.0f} GPU-seconds"
    if news.measuring:
        row += f"; measuring {news.measuring}"
    return f"{row}; {news.problem}" if news.problem else row


def calibrations(known: Sequence[Calibration]) -> RenderableType:
    """Of each GPU type: what it was fitted to, and what the law leaves unexplained there."""
    if not known:
        return Text("no GPU type is calibrated; do it with `maveriq calibrate`", style="dim")
    table = Table.grid(padding=(0, 2))
    for one in known:
        scope = one.scope
        table.add_row(Text(one.gpu_type, style="bold"), f"{one.engine} {one.engine_version}")
        table.add_row("fitted", f"{one.fitted_at:%Y-%m-%d %H:%M} UTC, version {one.version}")
        table.add_row("cost", f"{amount(one.cost_s)} GPU-seconds")
        table.add_row("from", f"{scope.num_models} models, {scope.num_samples} samples")
        table.add_row("knows", f"{', '.join(scope.precisions)}; TP {_listed(scope.tp_degrees)}; "
                               f"stages {_listed(scope.pp_degrees)}; batch to {max(scope.batches)}; "
                               f"prompts to {scope.max_input_tokens} tokens")  # fmt: skip
        table.add_row("latency", _off_by(one.latency_residuals))
        if one.num_disturbed:
            shares = f"during the middle one {amount(100 * one.others)} % of it"
            table.add_row("provisional", f"{one.num_disturbed} of {scope.num_samples} samples: others used the device "
                                         f"meanwhile ({shares}); they count less, and are measured again when it is "
                                         "quiet")  # fmt: skip
        if (one.prefill_drift, one.decode_drift) != (1, 1):
            table.add_row("in service", f"prompts take {one.prefill_drift:.2f}, steps {one.decode_drift:.2f} times "
                                        "what was measured; predictions know that")  # fmt: skip
        table.add_row("memory", _off_by(one.memory_residuals))
    return table


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _off_by(residuals: Residuals | None) -> str:
    if residuals is None:
        return "not measured"
    median, p90, most = (amount(value * 100) for value in (residuals.median, residuals.p90, residuals.maximum))
    return f"what was measured is met within {median} % (median), {p90} % (nine in ten), {most} % (all)"
