"""`maveriq accuracy`: has a model's variants, or its layers, measured on a text; shows how far, and what came of it."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from maveriq.cli import options as o
from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.figures import digits
from maveriq.cli.reading import read_text
from maveriq.contracts import LayerSensitivity, Precision
from maveriq.contracts.accuracy import LAYER_PRECISIONS, AccuracyRecord

POLL_S = 0.5
LAYER_TOKENS = 1024  # each layer costs a pass over half the model in each precision


def accuracy(
    model: Annotated[str, typer.Argument(help="Name of a registered model.", metavar="MODEL")],
    text: Annotated[
        Path | None, typer.Option("--text", help="Measure the variants on this file; '-' is standard input.")
    ] = None,
    layers: Annotated[
        Path | None,
        typer.Option("--layers", help="Measure on this file what each layer alone loses, for mixed precisions."),
    ] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Of --layers; int8 and int4 by default. Repeatable.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Of the text, from its beginning; 4096 by default, 1024 of --layers.")
    ] = None,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Measure what each variant of a model keeps of full precision's quality, or what each of its layers loses."""
    console = None if json else Console(highlight=False)
    if (text is None) == (layers is None):
        raise CommandFailed("give one text: with --text for the variants, with --layers for the layers",
                            field="--text", exit_code=2)  # fmt: skip
    if text is not None and precision:
        raise CommandFailed("belongs to --layers; the variants say theirs", field="--precision", exit_code=2)
    if layers is not None:
        measure_layers(Api(url), model, layers, precision or (), max_tokens, console)
    elif text is not None:
        measure_accuracy(Api(url), model, text, max_tokens, console)


def measure_accuracy(api: Api, model: str, text: Path, max_tokens: int | None, console: Console | None) -> None:
    """Measure the variants and show it; None prints the result as JSON.

    Raises:
        CommandFailed: refused, or no variant could be measured.
    """
    body: dict[str, object] = {"text": read_text(text, "--text")}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    record = _followed(api, model, body, console)
    if console is None:
        print(record.model_dump_json())
    else:
        console.print(results(record))
    if all(each.relative is None for each in record.results):
        raise CommandFailed("no variant could be measured: see the reasons", code="not_measured")


def measure_layers(
    api: Api, model: str, text: Path, precisions: Sequence[Precision], max_tokens: int | None, console: Console | None
) -> None:
    """The same of what is lost by each layer alone.

    Args:
        precisions: in which layers are measured; empty: all that an engine makes of a layer.

    Raises:
        CommandFailed: refused, or it could not be measured.
    """
    body: dict[str, object] = {
        "text": read_text(text, "--layers"),
        "max_tokens": max_tokens or LAYER_TOKENS,
        "layers": [str(precision) for precision in precisions or LAYER_PRECISIONS],
    }
    record = _followed(api, model, body, console)
    if record.sensitivity is None:
        raise CommandFailed("the layers were not measured: does the profiler know how?", code="not_measured")
    if console is None:
        print(record.model_dump_json())
    else:
        console.print(lost_by_layers(record, record.sensitivity))


def _followed(api: Api, model: str, body: dict[str, object], console: Console | None) -> AccuracyRecord:
    """Its end. Raises CommandFailed: nothing could be measured."""
    record = api.submit_accuracy(model, body)
    with Bars(console) as bars:
        while not record.finished:
            time.sleep(POLL_S)
            record = api.accuracy(model, record.accuracy_id)
            bars.show(record)
    if record.problem:
        raise CommandFailed(record.problem, code="not_measured")
    return record


def results(record: AccuracyRecord) -> Table:
    """One row a variant."""
    full = f" ({record.reference})" if record.reference else ""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.caption = Text(
        f"{record.num_tokens} tokens; relative and agreement are to full precision{full}; "
        f"kept with {record.model}, where --min-accuracy finds them",
        style="dim",
    )
    table.caption_justify = "left"
    for title in ("variant", "perplexity", "agreement", "relative"):
        table.add_column(title, justify="left" if title == "variant" else "right", no_wrap=True)
    if any(each.problem for each in record.results):
        table.add_column("not measured, because")
    for each in record.results:
        why = [each.problem.removeprefix(f"{each.variant}: ")] if each.problem else []
        table.add_row(
            each.variant,
            _told(each.perplexity, lambda value: f"{value:.4g}"),
            _told(each.agreement, lambda value: f"{value:.2%}"),
            _told(each.relative, lambda value: f"{value:.4f}"),
            *why,
        )
    return table


def lost_by_layers(record: AccuracyRecord, sensitivity: LayerSensitivity) -> RenderableType:
    """One row a layer, the sums last."""
    full = record.reference
    shown = [place for place, precision in enumerate(sensitivity.precisions) if precision is not full]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_footer=True)
    table.add_column("layer", "all", justify="right", no_wrap=True)
    for place in shown:
        total = sum(row[place] for row in sensitivity.layers)
        table.add_column(sensitivity.precisions[place], digits(total), justify="right", no_wrap=True)
    for number, row in enumerate(sensitivity.layers):
        table.add_row(f"{number}", *(digits(row[place]) for place in shown))
    note = (
        f"nats a token by one layer alone, {full} everywhere else, on {record.num_tokens} tokens; a mix keeps about "
        f"exp(-sum) of {full}. Kept with {record.model}, whose intents are planned in mixed precisions from now on"
    )
    return Group(table, Text(note, style="dim"))


def _told(value: float | None, words: Callable[[float], str]) -> str:
    return "-" if value is None else words(value)


class Bars:
    """One bar a variant on a terminal; elsewhere a line when one is begun."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._told: set[str] = set()
        self._tasks: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        live = console is not None and console.is_terminal
        self._progress = Progress(*columns, console=console, transient=True) if live else None

    def __enter__(self) -> "Bars":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *ended: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, record: AccuracyRecord) -> None:
        for each in record.progress:
            if self._progress is not None:
                task = self._tasks.get(each.variant)
                if task is None:
                    task = self._tasks[each.variant] = self._progress.add_task(each.variant, total=each.num_tokens)
                self._progress.update(task, completed=each.num_done)
            elif self._console is not None and each.variant not in self._told:
                how_far = f", {each.num_tokens} passes" if record.layers else f" on {each.num_tokens} tokens"
                self._console.print(f"measuring {each.variant}{how_far}")
                self._told.add(each.variant)
