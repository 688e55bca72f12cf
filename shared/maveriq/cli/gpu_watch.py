"""The GPUs as bars with who waits for memory and why: once, or live until Ctrl-C."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.bars import BAR_CELLS, draw
from maveriq.cli.finding import ENDED
from maveriq.contracts import Deployment, InventoryChanged, Priority

POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What there is at one moment."""

    nodes: tuple[InventoryChanged, ...]
    deployments: tuple[Deployment, ...]

    @property
    def waiting(self) -> list[Deployment]:
        """In the order in which they are tried: by priority, then by arrival."""
        order = tuple(Priority).index
        found = [each for each in self.deployments if each.waiting is not None and each.state not in ENDED]
        return sorted(found, key=lambda each: (order(each.intent.priority), each.accepted_at))

    def names(self) -> dict[UUID, str]:
        names = {each.deployment_id: _name(each) for each in self.deployments}
        holdings = (holding for node in self.nodes for state in node.gpus for holding in state.holdings)
        return names | {holding.deployment_id: "a calibration" for holding in holdings if holding.calibration}

    def plain(self) -> dict[str, Any]:
        waiting = [
            {
                "deployment_id": str(each.deployment_id),
                "model": each.intent.model,
                "priority": str(each.intent.priority),
                "reason": each.waiting,
            }
            for each in self.waiting
        ]
        return {"gpus": [node.model_dump(mode="json") for node in self.nodes], "waiting": waiting}


def show_gpus(api: Api, console: Console | None) -> None:
    """Every node's GPUs as bars."""
    fleet = _read(api)
    if console is None:
        print(json.dumps([node.model_dump(mode="json") for node in fleet.nodes]))
        return
    if not fleet.nodes:
        raise CommandFailed("no node has reported; start a worker: maveriq up --only worker", code="no_nodes")
    console.print(_view(fleet, console.width))


def watch_gpus(api: Api, console: Console | None, sleep: Callable[[float], None] = time.sleep) -> None:
    """The same again at each change, until Ctrl-C; as JSON one line a change."""
    try:
        if console is None:
            _lines(api, sleep)
        elif console.is_terminal:
            _live(api, console, sleep)
        else:
            _pictures(api, console, sleep)
    except KeyboardInterrupt:
        return


def _lines(api: Api, sleep: Callable[[float], None]) -> None:
    told: dict[str, Any] | None = None
    while True:
        now = _read(api).plain()
        if now != told:
            print(json.dumps(now), flush=True)
            told = now
        sleep(POLL_S)


def _live(api: Api, console: Console, sleep: Callable[[float], None]) -> None:
    told: Fleet | None = None
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            try:
                fleet = _read(api)
            except CommandFailed as failed:
                if told is None:
                    raise
                live.update(
                    Group(_view(told, console.width), Text(f"not current: {failed}", style="red")), refresh=True
                )
            else:
                if fleet != told:
                    live.update(_view(fleet, console.width), refresh=True)
                told = fleet
            sleep(POLL_S)


def _pictures(api: Api, console: Console, sleep: Callable[[float], None]) -> None:
    """Into a file or a pipe: one below the other, at each change that shows."""
    told = ""
    while True:
        with console.capture() as drawn:
            try:
                console.print(_view(_read(api), console.width))
            except CommandFailed as failed:
                if not told:
                    raise
                console.print(f"not current: {failed}")
        if drawn.get() != told:
            told = drawn.get()
            console.print(f"{datetime.now():%H:%M:%S}")
            console.out(told, highlight=False)
        sleep(POLL_S)


def _read(api: Api) -> Fleet:
    return Fleet(tuple(api.inventory()), tuple(api.deployments()))


def _view(fleet: Fleet, width: int) -> RenderableType:
    if not fleet.nodes:
        return Text("no node has reported yet; start a worker: maveriq up --only worker", style="dim")
    bars = draw(fleet.nodes, fleet.names(), max(8, min(BAR_CELLS, width - 46)))
    waiting = waiting_lines(fleet.waiting)
    return Group(bars, Text(), *waiting) if waiting else bars


def waiting_lines(deployments: Sequence[Deployment]) -> list[Text]:
    """Who waits for memory, and for what."""
    return [
        Text(f"{_name(each)} waits", style="yellow")
        .append(f" (priority {each.intent.priority})" if each.intent.priority is not Priority.NORMAL else "")
        .append(f": {each.waiting}", style="default")
        for each in deployments
    ]


def _name(deployment: Deployment) -> str:
    return f"{deployment.intent.model} {str(deployment.deployment_id)[:8]}"
