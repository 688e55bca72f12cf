"""Draws a plan's Pareto front with matplotlib, the extra `maveriq[plot]`: the only file that imports it."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maveriq.cli.api import CommandFailed
from maveriq.cli.figures import GIB, MIB, counted_shape, gpus_of
from maveriq.contracts import Candidate, Intent, Interval, Plan, Precision

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = {
    Precision.FP32: "#0072b2", Precision.BF16: "#009e73", Precision.FP16: "#56b4e9",
    Precision.FP8: "#e69f00", Precision.INT8: "#d55e00", Precision.INT4: "#cc79a7",
}  # fmt: skip
"""Told apart by colour-blind people too (Okabe and Ito)."""
GREY = "#b8b8b8"
PANEL_INCHES = (6.4, 5.0)
DOTS_PER_INCH = 150
LABEL_WIDTH, LABEL_HEIGHT = 0.25, 0.03  # of the picture
LABELLED = 12  # shapes of the front; more names than these would cover one another
FAR_APART = 20  # latencies: a straight axis would press the shorter ones together

Axis = Callable[[Candidate], float]


def check_plot(path: Path) -> None:
    """Raises CommandFailed where `path` could not be drawn, before anything is planned."""
    if path.suffix.lower() not in SUFFIXES:
        raise CommandFailed(f"{path}: end its name in {', '.join(SUFFIXES)}", field="--plot", exit_code=2)
    if not path.parent.is_dir():
        raise CommandFailed(f"{path}: there is no folder {path.parent}", field="--plot", exit_code=2)
    if find_spec("matplotlib") is None:
        raise CommandFailed("needs matplotlib: pip install 'maveriq[plot]'", field="--plot", code="not_installed")


def draw_plan(plan: Plan, intent: Intent, path: Path) -> None:
    """Latency against memory, and against price where one is known; memory and price are of all replicas.

    Raises:
        CommandFailed: the file cannot be written.
    """
    everything = dict.fromkeys((*plan.offered, *plan.front))  # the front may hold what is not kept as a candidate
    unit, per_unit = ("GiB", GIB) if _memory_bytes(plan.offered[0]) >= GIB else ("MiB", MIB)
    panels: list[tuple[str, Axis]] = [(f"GPU memory ({unit})", lambda c: _memory_bytes(c) / per_unit)]
    if any(_price(c) is not None for c in everything):
        panels.append(("price per hour", lambda c: _price(c) or 0.0))
    figure: Any = import_module("matplotlib.figure").Figure(
        figsize=(PANEL_INCHES[0] * len(panels), PANEL_INCHES[1]), layout="constrained"
    )
    for number, (title, of) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        shown = [c for c in everything if number == 0 or _price(c) is not None]
        _draw(axes, shown, plan, of, per_unit if number == 0 else None)
        _bound(axes, [_seconds(c) for c in shown], [of(c) for c in shown])
        axes.set_xlabel("end-to-end latency (s)")
        axes.set_ylabel(title)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        if number == 0:
            _label(axes, [c for c in shown if c in plan.front], of)
            axes.legend(frameon=False, fontsize=8)
    best = plan.offered[0]
    figure.suptitle(f"{intent.model}, {intent.objective}: {counted_shape(best)} on {gpus_of(best)}", fontsize=11)
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)  # by its suffix: Agg, SVG or PDF, never a screen
    except OSError as error:
        raise CommandFailed(f"cannot write {path}: {error}", field="--plot") from error


def _draw(axes: Any, shown: Sequence[Candidate], plan: Plan, of: Axis, bytes_per_unit: float | None) -> None:
    """
    Args:
        bytes_per_unit: where the axis is memory: its intervals are drawn too.
    """
    best, front = plan.offered[0], plan.front or plan.offered[:1]
    dominated = [c for c in shown if c not in front and c != best]
    axes.scatter([_seconds(c) for c in dominated], [of(c) for c in dominated], s=18, color=GREY, label="dominated")
    on_front = sorted((c for c in shown if c in front), key=_seconds)
    named: set[Precision] = set()
    for each in on_front:
        precision = each.configuration.precision
        _bars(axes, each, of, bytes_per_unit)
        label = None if precision in named else f"front, {precision}"
        axes.scatter([_seconds(each)], [of(each)], s=42, color=COLOURS[precision], label=label, zorder=3)
        named.add(precision)
    if best in shown:
        _bars(axes, best, of, bytes_per_unit)
        colour = COLOURS[best.configuration.precision]
        axes.scatter(
            [_seconds(best)], [of(best)], s=260, marker="*", color=colour, edgecolors="black", label="chosen", zorder=4
        )


def _bound(axes: Any, seconds: Sequence[float], values: Sequence[float]) -> None:
    """Shows every point; a bar may leave the picture, where little is known. Far apart: by powers of ten."""
    for name, points in (("x", seconds), ("y", values)):
        low, high = min(points), max(points)
        room = 0.12 * (high - low) or 0.5 * high
        getattr(axes, f"set_{name}lim")(max(0.0, low - room), high + room)
    if max(seconds) > FAR_APART * min(seconds):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(min(seconds) / 1.5, max(seconds) * 1.5)


def _label(axes: Any, front: Sequence[Candidate], of: Axis) -> None:
    """The first of each name: those of other batches are near it. None where it would cover another."""
    names = {counted_shape(each): each for each in reversed(front)}
    taken: list[tuple[float, float]] = []
    for name, each in names.items() if len(names) <= LABELLED else ():
        point = (_seconds(each), of(each))
        x, y = axes.transAxes.inverted().transform(axes.transData.transform(point))
        if all(abs(x - other[0]) > LABEL_WIDTH or abs(y - other[1]) > LABEL_HEIGHT for other in taken):
            taken.append((x, y))
            axes.annotate(name, point, fontsize=7, color="#555555", xytext=(6, 5), textcoords="offset points")


def _bars(axes: Any, candidate: Candidate, of: Axis, bytes_per_unit: float | None) -> None:
    """What is known of where the truth lies: nine cases of ten."""
    across = _reach(candidate.prediction.e2e_interval_ms, candidate.prediction.e2e_ms, 1e-3)
    up = None
    if bytes_per_unit is not None:
        p = candidate.prediction
        up = _reach(p.memory_interval_bytes, p.memory_bytes, candidate.replicas / bytes_per_unit)
    if across is not None or up is not None:
        colour = COLOURS[candidate.configuration.precision]
        axes.errorbar(
            [_seconds(candidate)], [of(candidate)], xerr=across, yerr=up, fmt="none", ecolor=colour, capsize=2, lw=1
        )


def _reach(interval: Interval | None, at: float, factor: float) -> list[list[float]] | None:
    """How far below and above, as matplotlib wants it."""
    if interval is None:
        return None
    return [[max(0.0, at - interval.low) * factor], [max(0.0, interval.high - at) * factor]]


def _seconds(candidate: Candidate) -> float:
    return candidate.prediction.e2e_ms / 1e3


def _memory_bytes(candidate: Candidate) -> float:
    return float(candidate.prediction.memory_bytes * candidate.replicas)


def _price(candidate: Candidate) -> float | None:
    each = candidate.prediction.price_per_hour
    return None if each is None else each * candidate.replicas
