"""What a model's throughputs are predicted from: asked of the cluster, or kept in a file."""

import json
from pathlib import Path

from pydantic import ValidationError

from maveriq.cli.api import Api, CommandFailed
from maveriq.contracts import Deployment, Intent, Model, ModelFacts, State
from maveriq.contracts.provisioning import LawSources

_KEPT = {"model", "facts", "calibrations"}


def law_sources(api: Api, intent: Intent, kept: Path | None, keep: Path | None) -> LawSources:
    """
    Args:
        kept: file to read in place of asking the cluster.
        keep: file to write for the next time.

    Raises:
        CommandFailed: the cluster does not know the model, has no calibration, or cannot be reached.
    """
    sources = _asked(api, intent) if kept is None else _read(kept, intent)
    if keep is not None:
        try:
            keep.write_text(sources.model_dump_json(include=_KEPT) + "\n")
        except OSError as error:
            raise CommandFailed(f"cannot write {keep}: {error}", field="--save-law") from error
    return sources


def _read(path: Path, intent: Intent) -> LawSources:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        sources = LawSources.model_validate({**body, "intent": intent})
    except (OSError, ValueError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise CommandFailed(
            f"{path} holds no law: {first}; write one with --save-law", field="--law", exit_code=2
        ) from error
    if sources.model.name != intent.model:
        raise CommandFailed(f"{path} is of {sources.model.name}", field="--law", exit_code=2)
    return sources


def _asked(api: Api, intent: Intent) -> LawSources:
    calibrations, _ = api.calibrations()
    if not calibrations:
        raise CommandFailed(
            "no GPU type is calibrated, so nothing is known of their speed; measure with maveriq calibrate, or give "
            "each row of the catalogue a throughput",
            code="not_calibrated",
        )
    return LawSources(
        model=_model(api, intent.model),
        facts=_facts(api, intent.model),
        calibrations=tuple(calibrations),
        intent=intent,
    )


def _model(api: Api, name: str) -> Model:
    for each in api.models():
        if each["id"] == name and each.get("registered"):
            return Model.model_validate(each["registered"])
    raise CommandFailed(f"{name} is no registered model; maveriq register {name} SOURCE", field="MODEL")


def _facts(api: Api, name: str) -> ModelFacts:
    """Of a dry run that asks for nothing: the profiler reads the model's shape for it."""
    submitted = api.submit({"model": name}, dry_run=True)
    last: Deployment = submitted
    for last in api.changes(submitted.deployment_id):
        if last.state in (State.PLANNED, State.FAILED):
            break
    if last.plan is None:
        why = "" if last.failure is None else f": {last.failure.detail}"
        raise CommandFailed(f"the shape of {name} is not known{why}", field="MODEL", code="no_facts")
    return last.plan.facts
