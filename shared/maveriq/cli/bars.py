"""GPUs drawn as bars: what is used, by whom, and which fragment is free."""

from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID

from rich.console import Group
from rich.table import Table
from rich.text import Text

from maveriq.cli.figures import size
from maveriq.contracts import GpuState, InventoryChanged

BAR_CELLS = 36
FOREIGN = "grey50"
FREE = "grey30"
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def cells(parts: Sequence[float], width: int) -> list[int]:
    """Widths in whole cells that sum to `width`; every part above nothing keeps at least one cell if there is room.

    Args:
        parts: sizes in order, in any unit.
    """
    whole = sum(parts)
    if whole <= 0 or width <= 0:
        return [0] * len(parts)
    exact = [part / whole * width for part in parts]
    largest = sorted((at for at, part in enumerate(parts) if part > 0), key=lambda at: -parts[at])[:width]
    shown = [1 if at in largest else 0 for at in range(len(parts))]
    for _ in range(width - sum(shown)):
        shown[max(largest, key=lambda at: exact[at] - shown[at])] += 1
    return shown


def bar(state: GpuState, colours: Mapping[UUID, str], width: int = BAR_CELLS) -> Text:
    """One GPU: holdings in their deployment's colour, foreign memory hatched, the fragment dotted."""
    held = [(holding.bytes, "█", colours.get(holding.deployment_id, "white")) for holding in state.holdings]
    parts = [*held, (state.gpu.foreign_bytes, "▒", FOREIGN), (state.free_bytes, "·", FREE)]
    text = Text()
    for (_, mark, style), cell in zip(parts, cells([part[0] for part in parts], width), strict=True):
        text.append(mark * cell, style=style)
    return text


def colours_of(deployment_ids: Sequence[UUID]) -> dict[UUID, str]:
    """A colour each, in order; they repeat when they run out."""
    return {each: COLOURS[n % len(COLOURS)] for n, each in enumerate(dict.fromkeys(deployment_ids))}


def draw(nodes: Sequence[InventoryChanged], names: Mapping[UUID, str], width: int = BAR_CELLS) -> Group:
    """All nodes' GPUs with a legend of who holds what.

    Args:
        names: what to call each deployment; one that is not there goes by its id's start.
    """
    holders = [holding.deployment_id for node in nodes for state in node.gpus for holding in state.holdings]
    colours = colours_of(holders)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("GPU", "type"):
        table.add_column(title, overflow="fold")
    table.add_column("memory", no_wrap=True)
    table.add_column("free", justify="right", no_wrap=True)
    table.add_column("of", justify="right", no_wrap=True)
    for node in sorted(nodes, key=lambda n: n.node):
        for state in node.gpus:
            table.add_row(
                _short(state.gpu.id) + " (silent)" * node.silent,
                state.gpu.gpu_type,
                bar(state, colours, width),
                size(state.free_bytes),
                size(state.gpu.total_bytes),
            )
    told = list(_told(nodes))
    is_silent = any(node.silent for node in nodes)
    is_used = holders or any(state.gpu.foreign_bytes for node in nodes for state in node.gpus)
    if not is_used and not is_silent:
        return Group(table, *told)
    legend = Text()
    for holder, colour in colours.items():
        legend.append("█ ", style=colour).append(f"{names.get(holder, str(holder)[:8])}   ")
    legend.append("▒ ", style=FOREIGN).append("foreign   ").append("· ", style=FREE).append("free")
    if is_silent:
        legend.append("   silent: its worker reports no more, and nothing is placed there")
    return Group(table, legend, *told)


def _told(nodes: Sequence[InventoryChanged]) -> Iterator[Text]:
    """Why less may be taken than bars show as free."""
    for node in sorted((n for n in nodes if not n.silent), key=lambda n: n.node):
        if node.headroom_bytes:
            yield Text(f"{node.node}: {size(node.headroom_bytes)} of what is free on it stays free (MAVERIQ_HEADROOM)")
        for state in node.gpus:
            if state.drift is not None:
                yield Text(f"{_short(state.gpu.id)}: {state.drift}", style="yellow")


def _short(gpu: str) -> str:
    """NVML's UUIDs are long; their start tells them apart."""
    return gpu[:12] if gpu.startswith("GPU-") else gpu
