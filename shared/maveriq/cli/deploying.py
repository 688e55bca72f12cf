"""Intents from the command line, followed through their states."""

from rich.console import Console
from rich.text import Text

from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.intents import as_command
from maveriq.cli.options import DEFAULT_URL
from maveriq.cli.progress import Progress
from maveriq.cli.tables import failure_view
from maveriq.contracts import Deployment, Intent, State


def deploy_and_wait(api: Api, intent: Intent, console: Console | None) -> Deployment:
    """Deploy, showing each state on `console`; None prints the last state as JSON.

    Raises:
        CommandFailed: the intent is refused, or cannot be met.
    """
    deployment = follow(api, intent, console, dry_run=False)
    if console is None:
        print(deployment.model_dump_json())
    else:
        start = str(deployment.deployment_id)[:8]
        console.print(f"\nnext: [bold]maveriq chat {intent.model}[/]    release it: maveriq rm {start}")
    return deployment


def follow(api: Api, intent: Intent, console: Console | None, *, dry_run: bool) -> Deployment:
    """Submit, and wait until it is planned or ready.

    Raises:
        CommandFailed: the intent is refused, or cannot be met; the nearest that can are shown then.
    """
    last = State.PLANNED if dry_run else State.READY
    with Progress(console or Console(quiet=True), last=last) as progress:
        submitted = api.submit(intent.model_dump(mode="json", exclude_unset=True), dry_run=dry_run)
        deployment = submitted
        try:
            for deployment in api.changes(submitted.deployment_id):
                progress.on_change(deployment)
                if deployment.state in (last, State.FAILED, State.RELEASED):
                    break
        except KeyboardInterrupt as left:
            raise _left(deployment) from left
    if deployment.state is State.FAILED:
        raise _failed(deployment, console, api.url)
    if deployment.state is not last:
        raise CommandFailed(f"it is {deployment.state}: released by somebody while it started", code="released")
    return deployment


def _left(deployment: Deployment) -> CommandFailed:
    start = str(deployment.deployment_id)[:8]
    goes_on = f"{start} goes on without you: `maveriq ps` shows it, `maveriq rm {start}` gives it up"
    told = "stopped" if deployment.dry_run else goes_on
    return CommandFailed(told, code="interrupted", exit_code=130)


def _failed(deployment: Deployment, console: Console | None, url: str) -> CommandFailed:
    assert deployment.failure is not None, "a failed deployment says why"
    failure = deployment.failure
    if console is None:
        print(deployment.model_dump_json())
        raise SystemExit(1)
    console.print(failure_view(failure, deployment.intent))
    name, where = ("plan" if deployment.dry_run else "deploy"), (None if url == DEFAULT_URL else url)
    for offer in failure.counteroffers:
        console.print(Text(f"  {as_command(name, offer.intent, where)}", style="green"), soft_wrap=True)
    again = "change one of these and try again" if failure.counteroffers else "see the reason above"
    what = "cannot be planned" if deployment.dry_run else "is not deployed"
    return CommandFailed(f"{deployment.intent.model} {what}; {again}", code=str(failure.reason))
