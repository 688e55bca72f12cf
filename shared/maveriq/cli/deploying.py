"""Intents from the command line: deploy and wait, or show the plan."""

from rich.console import Console
from rich.text import Text

from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.progress import Progress
from maveriq.cli.tables import failure_view, plan_view
from maveriq.contracts import Deployment, Intent, State


def deploy_and_wait(api: Api, intent: Intent, console: Console | None) -> Deployment:
    """Deploy, showing each state on `console`; None prints the last state as JSON.

    Raises:
        CommandFailed: the intent is refused, or cannot be met.
    """
    deployment = _follow(api, intent, console, dry_run=False)
    if console is None:
        print(deployment.model_dump_json())
    else:
        start = str(deployment.deployment_id)[:8]
        console.print(f"\nnext: [bold]maveriq chat {intent.model}[/]    release it: maveriq rm {start}")
    return deployment


def show_plan(api: Api, intent: Intent, top: int, console: Console | None) -> None:
    """A dry run's plan, `top` rows of each kind.

    Raises:
        CommandFailed: the intent is refused, or cannot be met.
    """
    deployment = _follow(api, intent, console, dry_run=True)
    assert deployment.plan is not None, "a dry run ends with its plan, or fails"
    if console is None:
        print(deployment.plan.model_dump_json())
    else:
        console.print(Text())
        console.print(plan_view(deployment.plan, intent.objective, top))


def _follow(api: Api, intent: Intent, console: Console | None, *, dry_run: bool) -> Deployment:
    last = State.PLANNED if dry_run else State.READY
    with Progress(console or Console(quiet=True), last=last) as progress:
        submitted = api.submit(intent.model_dump(mode="json", exclude_unset=True), dry_run=dry_run)
        deployment = submitted
        for deployment in api.changes(submitted.deployment_id):
            progress.on_change(deployment)
            if deployment.state in (last, State.FAILED, State.DRAINING, State.RELEASED):
                break
    if deployment.state is State.FAILED:
        raise _failed(deployment, console)
    if deployment.state is not last:
        raise CommandFailed(f"it is {deployment.state}: released by somebody while it started", code="released")
    return deployment


def _failed(deployment: Deployment, console: Console | None) -> CommandFailed:
    assert deployment.failure is not None, "a failed deployment says why"
    failure = deployment.failure
    if console is None:
        print(deployment.model_dump_json())
        raise SystemExit(1)
    console.print(failure_view(failure))
    again = "change one of these and try again" if failure.counteroffers else "see the reason above"
    return CommandFailed(f"{deployment.intent.model} is not deployed; {again}", code=str(failure.reason))
