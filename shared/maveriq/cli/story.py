"""How the demo's page is laid out: numbered sections, each with the time it took."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from maveriq.cli.figures import apart, duration, size

INDENT = (0, 0, 0, 2)
MAX_WIDTH = 100
WORTH_TELLING_S = 0.1


class Story:
    """Prints one section after the other; a terminal sees what is being done meanwhile."""

    def __init__(self, console: Console) -> None:
        if console.width > MAX_WIDTH:
            console.width = MAX_WIDTH
        self._console = console
        self._sections = 0
        self._since = time.monotonic()
        self._status: Progress | None = None

    @property
    def elapsed_s(self) -> float:
        """Since the last section."""
        return time.monotonic() - self._since

    def doing(self, words: str | None) -> None:
        """What happens now; None ends it."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if words is not None:
            if self._console.is_terminal:
                columns = SpinnerColumn(), TextColumn("[dim]{task.description} ...[/]"), TimeElapsedColumn()
                self._status = Progress(*columns, console=self._console, transient=True)
                self._status.add_task(words, total=None)
                self._status.start()
            else:
                self._console.print(f"  {words} ...", style="dim")

    def section(self, title: str, *parts: RenderableType) -> None:
        """A numbered section: it ends what was being done, and says how long that took."""
        self.doing(None)
        self._sections += 1
        heading = Text(f"{self._sections} {title}", style="bold cyan")
        if self.elapsed_s > WORTH_TELLING_S:
            heading.append(f"  {self.elapsed_s:.1f} s", style="dim not bold")
        self._console.print(Rule(heading, align="left", style="grey30"))
        for part in parts:
            self.show(part)
        self._since = time.monotonic()

    def show(self, part: RenderableType) -> None:
        self._console.print(Padding(part, INDENT))

    @contextmanager
    def streaming(self) -> Generator["Streamed", None, None]:
        """Text that grows while the block runs."""
        self.doing(None)
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=12) as live:
                yield Streamed(live, self._console)
        else:
            self._console.print("  ", end="")
            yield Streamed(None, self._console)
            self._console.print()
        self._since = time.monotonic()


class Streamed:
    """One answer on the page."""

    def __init__(self, live: Live | None, console: Console) -> None:
        self._live = live
        self._console = console
        self._text = ""

    def add(self, text: str) -> None:
        self._text += text
        if self._live is not None:
            self._live.update(Padding(Text(self._text, style="green"), INDENT))
        else:
            self._console.print(text, end="", markup=False, soft_wrap=True)


def comparison(rows: list[tuple[str, float, float]]) -> Table:
    """Rows of (name, predicted, measured); a name that begins with "time" is in ms, the others are in bytes."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for title in ("predicted", "measured", "prediction off by"):
        table.add_column(title, justify="right")
    for name, predicted, measured in rows:
        shown = duration if name.startswith("time") else size
        table.add_row(name, shown(predicted), shown(measured), apart(predicted, measured))
    return table
