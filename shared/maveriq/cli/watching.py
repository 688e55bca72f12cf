"""What there is, and its release."""

import json

from rich.console import Console
from rich.table import Table

from maveriq.cli.api import Api
from maveriq.cli.finding import ENDED, find
from maveriq.cli.progress import Progress
from maveriq.cli.tables import deployments
from maveriq.contracts import FULL_PRECISIONS, Model, State, Variant


def show_deployments(api: Api, everything: bool, console: Console | None) -> None:
    """Deployments, without those that ended and without dry runs unless `everything`."""
    known = api.deployments(in_full=console is None)
    found = [each for each in known if everything or not (each.state in ENDED or each.dry_run)]
    if console is None:
        print(json.dumps([each.model_dump(mode="json") for each in found]))
    else:
        console.print(deployments(found))


def show_models(api: Api, console: Console | None) -> None:
    """What intents may name."""
    found = api.models()
    if console is None:
        print(json.dumps(found))
        return
    if not found:
        console.print("[dim]no models; make one known with `maveriq register NAME SOURCE`[/]")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model")
    table.add_column("variants, with what each keeps of full precision")
    for each in found:
        registered = each.get("registered")
        model = None if registered is None else Model.model_validate(registered)
        table.add_row(str(each["id"]), _described(model) if model else "")
    console.print(table)


def _described(model: Model) -> str:
    told = ", ".join(_kept(variant) for variant in model.variants)
    if model.sensitivity is None:
        return told
    quantised = [precision for precision in model.sensitivity.precisions if precision not in FULL_PRECISIONS]
    return f"{told}; layers measured in {', '.join(quantised)}"


def _kept(variant: Variant) -> str:
    """`int8 0.991 measured`; an accuracy that nobody knows is no number."""
    if variant.accuracy is None:
        return f"{variant.label} not measured"
    return f"{variant.label} {variant.accuracy:.3g} {variant.provenance or ''}".rstrip()


def release(api: Api, target: str, wait: bool, console: Console | None) -> None:
    """Release one deployment. Raises CommandFailed."""
    found = find(target, api.deployments())
    deployment = found
    with Progress(console or Console(quiet=True), last=State.RELEASED, first=State.DRAINING) as progress:
        if deployment.state not in ENDED:
            api.release(found.deployment_id)
        if wait:
            for deployment in api.changes(found.deployment_id):
                progress.on_change(deployment)
                if deployment.state in ENDED:
                    break
    if console is None:
        print(deployment.model_dump_json())
    elif deployment.state is State.FAILED and deployment.failure is not None:
        console.print(f"[dim]it had failed: {deployment.failure.reason}: {deployment.failure.detail}[/]")
    elif not wait:
        console.print(f"{deployment.intent.model} {str(deployment.deployment_id)[:8]} is being released")
