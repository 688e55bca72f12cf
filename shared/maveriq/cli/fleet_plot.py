"""Draws a fleet with matplotlib, the extra `maveriq[plot]`: cost by request rate, and who serves each bucket."""

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from maveriq.cli.api import CommandFailed
from maveriq.cli.figures import digits
from maveriq.cli.fleet_tables import fleet_name
from maveriq.cli.plotting import DOTS_PER_INCH, PANEL_INCHES
from maveriq.contracts.provisioning import Fleet

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
"""Told apart by colour-blind people too (Okabe and Ito); a GPU type has the same in both panels."""
HATCHES = ("", "//", "..", "xx")
"""Of several rows of one type."""
MOST_BUCKETS = 40


def draw_fleet(fleet: Fleet, path: Path) -> None:
    """Raises CommandFailed: the file cannot be written."""
    height = max(PANEL_INCHES[1], 0.2 * min(len(fleet.buckets), MOST_BUCKETS))
    figure: Any = import_module("matplotlib.figure").Figure(figsize=(PANEL_INCHES[0] * 2, height), layout="constrained")
    _draw_cost(figure.add_subplot(1, 2, 1), fleet)
    _draw_mix(figure.add_subplot(1, 2, 2), fleet)
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except OSError as error:
        raise CommandFailed(f"cannot write {path}: {error}", field="--plot") from error


def _colours(fleet: Fleet) -> dict[str, str]:
    """By GPU type."""
    return {one.gpu_type: COLOURS[number % len(COLOURS)] for number, one in enumerate(fleet.single_types)}


def _draw_cost(axes: Any, fleet: Fleet) -> None:
    highest = 0.0
    for kind, colour in _colours(fleet).items():
        points = [(p.request_rate_per_s, p.single.get(kind)) for p in fleet.curve]
        known = [(rate, price) for rate, price in points if price is not None]
        if known:
            style = {"color": colour, "lw": 1, "ls": "--", "label": f"{kind} alone"}
            axes.plot([rate for rate, _ in known], [price for _, price in known], marker=".", **style)
            highest = max(highest, *(price for _, price in known))
    mixed = [(p.request_rate_per_s, p.price_per_hour) for p in fleet.curve if p.price_per_hour is not None]
    rates, prices = [rate for rate, _ in mixed], [price for _, price in mixed]
    axes.plot(rates, prices, marker=".", color="black", lw=2, label="the cheapest fleet")
    axes.plot([fleet.request_rate_per_s], [fleet.price_per_hour], marker="*", ms=14, color="black")
    if mixed:
        most = max(prices) * 2.2  # a type that is far dearer would hide the others
        axes.set_ylim(0, min(most, max(highest, *prices, fleet.price_per_hour) * 1.05) or None)
    axes.set_xlabel("requests a second")
    axes.set_ylabel(f"{fleet.currency} an hour")
    axes.set_title(f"cost by request rate; ★ {digits(fleet.price_per_hour, 4)} at the workload's", fontsize=10)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)


def _draw_mix(axes: Any, fleet: Fleet) -> None:
    shown = sorted(fleet.buckets, key=lambda bucket: -bucket.request_rate_per_s)[:MOST_BUCKETS]
    shown.sort(key=lambda bucket: (bucket.input_up_to, bucket.output_up_to), reverse=True)
    colours, hatches = _colours(fleet), Counter[str]()
    for number, rented in enumerate(fleet.rented):
        parts = [[sum(s.share for s in b.shares if s.rented == n) for n in range(len(fleet.rented))] for b in shown]
        label = f"{rented.count} x {fleet_name(rented)}"
        if rented.configuration:
            label += f" ({rented.configuration})"
        axes.barh(
            range(len(shown)), [row[number] for row in parts], left=[sum(row[:number]) for row in parts],
            color=colours[rented.gpu_type], hatch=HATCHES[hatches[rented.gpu_type] % len(HATCHES)], label=label,
        )  # fmt: skip
        hatches[rented.gpu_type] += 1
    names = [f"≤{b.input_up_to:,.0f} → ≤{b.output_up_to:,.0f}" for b in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the bucket's requests")
    axes.set_title("who serves which prompt → answer tokens", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.08))
