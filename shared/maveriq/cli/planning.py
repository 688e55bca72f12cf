"""Plans from the command line: shown, explained, drawn."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from maveriq.cli.api import Api
from maveriq.cli.deploying import follow
from maveriq.cli.explaining import explanation
from maveriq.cli.plotting import check_plot, draw_plan
from maveriq.cli.tables import plan_view
from maveriq.contracts import Intent


def show_plan(
    api: Api, intent: Intent, console: Console | None, *, top: int, explain: bool = False, plot: Path | None = None
) -> None:
    """A dry run's plan; None as console prints it as JSON.

    Args:
        top: rows of each kind.
        plot: picture of the front to write too.

    Raises:
        CommandFailed: the intent is refused, or cannot be met; or the picture cannot be drawn.
    """
    if plot is not None:
        check_plot(plot)
    deployment = follow(api, intent, console, dry_run=True)
    plan = deployment.plan
    assert plan is not None, "a dry run ends with its plan, or fails"
    if plot is not None:
        draw_plan(plan, deployment.intent, plot)
    if console is None:
        print(plan.model_dump_json())
        return
    console.print(Text())
    view = explanation if explain else plan_view
    console.print(view(plan, deployment.intent, top))
    if plot is not None:
        console.print(f"\n[green]✓[/] {plot} shows the front of {len(plan.offered)} candidates")
