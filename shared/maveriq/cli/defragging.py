"""Moves that make room: asked for, shown as a table with the GPUs before and after, followed while they are made."""

import time
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from maveriq.cli import options as o
from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.bars import BAR_CELLS, draw
from maveriq.cli.figures import size
from maveriq.cli.tables import columns
from maveriq.contracts import (
    DefragmentationProgressed,
    GpuState,
    Holding,
    InventoryChanged,
    ReplicaMove,
    Stage,
)

POLL_S = 0.3
ANSWER_S = 60.0  # an allocator that has said nothing by then is not there

out = Console(highlight=False)


def defrag(
    apply: Annotated[bool, typer.Option("--apply", help="Make the moves; else they are only shown.")] = False,
    free_gpu: Annotated[
        str | None, typer.Option("--free-gpu", help="Empty this GPU (the start of its id is enough); else make room.")
    ] = None,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Find the fewest moves of replicas that make room for what waits, or that empty a GPU."""
    defragment(Api(url), free_gpu, None if json else out, apply=apply)


def defragment(api: Api, free_gpu: str | None, console: Console | None, *, apply: bool) -> None:
    """Plan, show, and with `apply` follow the moves to their end. Raises CommandFailed."""
    before = api.inventory()
    gpu = None if free_gpu is None else _gpu_id(free_gpu, before)
    defragmentation_id = api.defragment({"apply": apply} | ({} if gpu is None else {"free_gpu": gpu}))
    told = _heard(api, defragmentation_id)
    if console is not None and told.moves:
        console.print(_moves_view(told, before, _names(api), max(8, min(BAR_CELLS, console.width - 46))))
    if apply:
        told = _followed(api, told, console)
    if console is None:
        print(told.model_dump_json())
        raise SystemExit(1 if told.problem else 0)  # one object, which says why
    if told.finished and not told.problem:
        console.print(_conclusion(told))
    if told.problem:
        raise CommandFailed(f"{told.goal}: {told.problem}", code="not_defragmented")


def after(nodes: Sequence[InventoryChanged], moves: Sequence[ReplicaMove]) -> list[InventoryChanged]:
    """What is held once the moves are made."""
    for move in moves:
        mine = (move.deployment_id, move.replica)
        left, taken = set(_bytes(move.stages)), _bytes(move.to_stages)
        nodes = [
            node.model_copy(update={"gpus": tuple(_moved(state, mine, left, taken) for state in node.gpus)})
            for node in nodes
        ]
    return list(nodes)


def _moved(state: GpuState, mine: tuple[UUID, int], left: set[str], taken: dict[str, int]) -> GpuState:
    gpu = state.gpu.id
    kept = tuple(h for h in state.holdings if gpu not in left or (h.deployment_id, h.replica) != mine)
    new = (Holding(deployment_id=mine[0], replica=mine[1], bytes=taken[gpu]),) if gpu in taken else ()
    return state.model_copy(update={"holdings": (*kept, *new)})


def _bytes(stages: Sequence[Stage]) -> dict[str, int]:
    held: dict[str, int] = {}
    for stage in stages:
        for gpu in stage.gpus:
            held[gpu] = held.get(gpu, 0) + stage.reserved_bytes
    return held


def _gpu_id(start: str, nodes: Sequence[InventoryChanged]) -> str:
    """The one GPU whose id begins so. Raises CommandFailed."""
    known = [state.gpu.id for node in nodes for state in node.gpus]
    found = [gpu for gpu in known if gpu == start] or [gpu for gpu in known if gpu.startswith(start)]
    if len(found) != 1:
        which = "is no GPU" if not found else f"could be {', '.join(found[:4])}"
        raise CommandFailed(f"{start!r} {which}; there are: {', '.join(known[:8]) or 'none'}", field="--free-gpu")
    return found[0]


def _heard(api: Api, defragmentation_id: UUID) -> DefragmentationProgressed:
    """The plan, once the allocator has it. Raises CommandFailed."""
    until = time.monotonic() + ANSWER_S
    while time.monotonic() < until:
        told = api.defragmentation(defragmentation_id)
        if told is not None:
            return told
        time.sleep(POLL_S)
    raise CommandFailed(f"no allocator answered within {ANSWER_S:.0f} s; is one running?", code="no_answer")


def _followed(api: Api, told: DefragmentationProgressed, console: Console | None) -> DefragmentationProgressed:
    """Its last news; each move is told when it is done."""
    num_told = 0
    while True:
        for number in range(num_told, told.num_done):
            if console is not None:
                move = told.moves[number]
                now = f"it serves on {_where(move.to_node, move.to_stages)} and left {_where(move.node, move.stages)}"
                what = f"move {number + 1} of {len(told.moves)} is done: {now}"
                console.print(Text("✓ ", style="green").append(what, style="default"))
        num_told = max(num_told, told.num_done)
        if told.finished:
            return told
        time.sleep(POLL_S)
        told = api.defragmentation(told.defragmentation_id) or told


def _moves_view(
    told: DefragmentationProgressed, before: Sequence[InventoryChanged], names: dict[UUID, str], width: int
) -> RenderableType:
    table = columns("#", "deployment", "replica", "from", "to", "memory", right=(0, 2, 5))
    for number, move in enumerate(told.moves, start=1):
        held = sum(stage.reserved_bytes * len(stage.gpus) for stage in move.stages)
        table.add_row(
            str(number), names.get(move.deployment_id, str(move.deployment_id)[:8]), str(move.replica),
            _where(move.node, move.stages), _where(move.to_node, move.to_stages), size(held),
        )  # fmt: skip
    touched = {move.node for move in told.moves} | {move.to_node for move in told.moves}
    shown = [node for node in before if node.node in touched]
    fewest = ", the fewest that do" if told.is_fewest else ""
    return Group(
        Text(f"to {told.goal}: {len(told.moves)} move(s){fewest}", style="bold"), Text(), table,
        Text("\nbefore", style="bold"), draw(shown, names, width),
        Text("\nafter", style="bold"), draw(after(shown, told.moves), names, width), Text(),
    )  # fmt: skip


def _where(node: str, stages: Sequence[Stage]) -> str:
    """`a: 0, 1`, with ids in short."""
    ids = dict.fromkeys(gpu for stage in stages for gpu in stage.gpus)
    gpus = [gpu[:12] if gpu.startswith("GPU-") else gpu.removeprefix(f"{node}/") for gpu in ids]
    return f"{node}: {', '.join(gpus)}"


def _conclusion(told: DefragmentationProgressed) -> Text:
    if not told.moves:
        return Text(f"{told.goal}: nothing has to move", style="green")
    if not told.apply:
        return Text("nothing was moved; do it with --apply", style="dim")
    return Text(f"done: {told.goal}", style="green")


def _names(api: Api) -> dict[UUID, str]:
    return {each.deployment_id: f"{each.intent.model} {str(each.deployment_id)[:8]}" for each in api.deployments()}
