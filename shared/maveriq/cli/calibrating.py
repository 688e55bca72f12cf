"""Calibrations: asked for and followed to their end, or shown with how far each is to be trusted."""

import json
import time
from collections.abc import Sequence
from queue import Queue
from threading import Thread
from typing import Any
from uuid import UUID

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.calibration_tables import calibrations, progress_row
from maveriq.contracts import Calibration, CalibrationProgressed, Precision, Value


def calibrate(
    api: Api, node: str | None, gpu_type: str | None, budget_s: float | None, precisions: Sequence[Precision],
    console: Console | None,
) -> None:  # fmt: skip
    """Ask for a calibration of each GPU type that is meant, and follow them all. Raises CommandFailed."""
    body: dict[str, object] = {"node": node, "gpu_type": gpu_type, "budget_s": budget_s}
    asked = api.calibrate(body | ({"precisions": [str(each) for each in precisions]} if precisions else {}))
    following = Following(api, asked, console)
    try:
        ends = following.to_the_end()
    except KeyboardInterrupt:
        _leave(asked, console)
        return
    fitted = {(one.engine, one.gpu_type): one for one in api.calibrations()[0]}
    found = [fitted[end.engine, end.gpu_type] for end in ends if (end.engine, end.gpu_type) in fitted]
    if console is None:
        print(json.dumps({"progress": _plain(ends), "calibrations": _plain(found)}))
    else:
        _sum_up(ends, found, console)
    if any((end.engine, end.gpu_type) not in fitted for end in ends):
        raise CommandFailed("; ".join(end.problem for end in ends if end.problem), code="not_calibrated")


def show_calibrations(api: Api, console: Console | None) -> None:
    """What is known of each GPU type, and what is being measured."""
    known, under_way = api.calibrations()
    if console is None:
        print(json.dumps({"data": _plain(known), "under_way": _plain(under_way)}))
        return
    console.print(calibrations(known))
    for one in under_way:
        console.print(Text("under way: ", style="cyan").append(progress_row(one), style="default"), soft_wrap=True)


class Following:
    """Several calibrations at once: live rows on a terminal, elsewhere a line for each news."""

    def __init__(self, api: Api, asked: Sequence[tuple[UUID, str]], console: Console | None) -> None:
        self._api = api
        self._asked = asked
        self._console = console or Console(quiet=True)
        self._latest: dict[UUID, CalibrationProgressed] = {}
        self._heard: Queue[CalibrationProgressed | CommandFailed] = Queue()
        self._begun_s = time.monotonic()

    def to_the_end(self) -> list[CalibrationProgressed]:
        """The last news of each. Raises CommandFailed: ingress is gone."""
        for calibration_id, _ in self._asked:
            Thread(target=self._listen, args=(calibration_id,), daemon=True).start()  # Ctrl-C waits for none of them
        with Live(get_renderable=self._rows, console=self._console, refresh_per_second=4, transient=True):
            while any(one not in self._latest or not self._latest[one].finished for one, _ in self._asked):
                heard = self._heard.get()
                if isinstance(heard, CommandFailed):
                    raise heard
                self._latest[heard.calibration_id] = heard
                if not self._console.is_terminal and not heard.finished:
                    self._console.print(progress_row(heard), soft_wrap=True)
        return [self._latest[calibration_id] for calibration_id, _ in self._asked]

    def _listen(self, calibration_id: UUID) -> None:
        try:
            for news in self._api.calibration_progress(calibration_id):
                self._heard.put(news)
                if news.finished:
                    return
            raise CommandFailed("ingress stopped telling; the calibration goes on: look with `maveriq calibrations`")
        except CommandFailed as failed:
            self._heard.put(failed)

    def _rows(self) -> RenderableType:
        if not self._console.is_terminal:
            return Text()
        table = Table.grid(padding=(0, 2))
        for calibration_id, rig in self._asked:
            news = self._latest.get(calibration_id)
            waited_s = time.monotonic() - self._begun_s
            table.add_row(progress_row(news) if news else f"{rig}: waiting for its profiler, {waited_s:.0f} s")
        return Group(table, Text("Ctrl-C leaves it running", style="dim"))


def _plain(told: Sequence[Value]) -> list[dict[str, Any]]:
    return [one.model_dump(mode="json") for one in told]


def _leave(asked: Sequence[tuple[UUID, str]], console: Console | None) -> None:
    rigs = ", ".join(rig for _, rig in asked)
    if console is None:
        print(json.dumps({"left_running": [str(calibration_id) for calibration_id, _ in asked]}))
    else:
        console.print(f"the calibration of {rigs} goes on; look at it with [bold]maveriq calibrations[/]")


def _sum_up(ends: Sequence[CalibrationProgressed], found: Sequence[Calibration], console: Console) -> None:
    for end in ends:
        mark = Text("✓ ", style="green") if not end.problem else Text("! ", style="yellow")
        console.print(mark.append(progress_row(end), style="default"), soft_wrap=True)
    if found:
        console.print(calibrations(found))
