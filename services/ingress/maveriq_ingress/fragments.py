"""What is free for pipelines of mixed precisions. Pure: inventories and when they were heard in, fragments out."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import chain, groupby
from operator import attrgetter

from maveriq.contracts import Fragment, GpuState, InventoryChanged

MOST = 256  # what an admission carries that is planned over them
FEW = 32  # what any does: 5 KB
_SILENT = timedelta(seconds=60)  # behind the node that was heard last: allocators take as long to give a node up


def fragments_of(heard: Iterable[tuple[InventoryChanged, datetime]]) -> tuple[Fragment, ...]:
    """Of whole nodes, those with most free bytes first; silent nodes are left out."""
    known = list(heard)
    latest = max((at for _, at in known), default=None)
    nodes = [
        _of(each) for each, at in known if latest is not None and latest - at <= _SILENT and not each.silent
    ]  # fmt: skip
    nodes.sort(key=lambda node: (-sum(each.free_bytes for each in node), [each.gpu for each in node]))
    return tuple(chain.from_iterable(nodes))


def carried(free: Iterable[Fragment]) -> tuple[Fragment, ...]:
    """At most MOST of them, of whole nodes, which stand together."""
    found: list[Fragment] = []
    for _, each in groupby(free, key=attrgetter("node")):
        node = list(each)
        if len(found) + len(node) <= MOST:
            found += node
    return tuple(found)


def _of(inventory: InventoryChanged) -> list[Fragment]:
    """The node's headroom is kept on its roomiest GPUs: whatever is planned over the rest keeps it."""
    found: list[Fragment] = []
    kept_bytes = inventory.headroom_bytes
    for state in sorted(inventory.gpus, key=lambda state: (-_free_bytes(state), state.gpu.id)):
        free_bytes = _free_bytes(state)
        spared = min(kept_bytes, free_bytes)
        kept_bytes -= spared
        found.append(Fragment(
            node=inventory.node, gpu=state.gpu.id, engine=inventory.engine, gpu_type=state.gpu.gpu_type,
            free_bytes=free_bytes - spared, held_bytes=_held_bytes(state),
        ))  # fmt: skip
    return [each for each in found if each.free_bytes or (each.held_bytes and not kept_bytes)]


def _free_bytes(state: GpuState) -> int:
    """What calibrations hold is free to whoever needs it; of a GPU that drifts nobody knows."""
    if state.drift is not None:
        return 0
    return state.free_bytes + sum(holding.bytes for holding in state.holdings if holding.calibration)


def _held_bytes(state: GpuState) -> int:
    """By deployments: it may come back."""
    return 0 if state.drift is not None else sum(held.bytes for held in state.holdings if not held.calibration)
