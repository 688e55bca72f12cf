"""Deployments and plans as tables."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from maveriq.cli.figures import SCORE_UNIT, amount, duration, shape, size
from maveriq.contracts import Candidate, Deployment, Failure, Objective, Placement, Plan, State

STYLE = {
    State.READY: "green",
    State.FAILED: "red",
    State.RELEASED: "dim",
    State.DRAINING: "yellow",
}


def deployments(found: Sequence[Deployment]) -> RenderableType:
    """One row a deployment, newest first."""
    if not found:
        return Text("no deployments; make one with `maveriq deploy MODEL`", style="dim")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("id", "model", "state", "replicas", "runs as", "memory", "layers"):
        table.add_column(title, no_wrap=title in ("id", "state", "memory"))
    for each in sorted(found, key=lambda d: d.accepted_at, reverse=True):
        first = each.placements[0] if each.placements else None
        held = sum(stage.reserved_bytes * len(stage.gpus) for p in each.placements for stage in p.stages)
        table.add_row(
            str(each.deployment_id)[:8],
            each.intent.model,
            Text(str(each.state), style=STYLE.get(each.state, "cyan")),
            f"{len(each.ready_replicas)}/{each.intent.replicas}",
            shape(first.candidate.configuration) if first else "",
            size(held) if held else "",
            " + ".join(str(n) for n in first.layers) if first else "",
        )
    return table


def candidates(plan: Plan, objective: Objective, shown: int) -> Table:
    """Candidates, best first, with what each is expected to do."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("runs as", no_wrap=True)
    types = {each.configuration.gpu_type for each in plan.candidates}
    if len(types) > 1:
        table.add_column("GPU type", overflow="fold")
    for title in ("batch", "TTFT", "TPOT", "E2E", "memory", f"score ({SCORE_UNIT[objective]})"):
        table.add_column(title, justify="right")
    for rank, each in enumerate(plan.candidates[:shown], start=1):
        table.add_row(
            str(rank),
            shape(each.configuration),
            *([each.configuration.gpu_type] if len(types) > 1 else []),
            *_predicted(each, objective),
            style="bold" if rank == 1 else "",
        )
    return table


def rejections(plan: Plan, shown: int) -> Table:
    """Why each other configuration lost, nearest miss first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), style="dim")
    for title in ("rejected", "batch", "misses", "wanted", "predicted"):
        table.add_column(title, justify="left" if title in ("rejected", "misses") else "right")
    for each in plan.rejected[:shown]:
        table.add_row(
            shape(each.configuration),
            str(each.configuration.max_batch),
            each.constraint,
            limit(each.constraint, each.wanted),
            "not measured" if each.predicted is None else limit(each.constraint, each.predicted),
        )
    return table


def plan_view(plan: Plan, objective: Objective, shown: int) -> Group:
    """The whole plan, `shown` rows of each kind at most."""
    parts: list[RenderableType] = [candidates(plan, objective, shown)]
    if plan.rejected:
        parts += [Text(), rejections(plan, shown)]
    tally = f"{plan.num_considered} configurations considered"
    parts += [Text(), Text(f"{tally}, best {len(plan.candidates)} kept, ranked by {objective}", style="dim")]
    return Group(*parts)


def failure_view(failure: Failure) -> Group:
    """Why a deployment failed, and the nearest intents that would have worked."""
    parts: list[RenderableType] = [Text(f"{failure.reason}: {failure.detail}", style="red")]
    if failure.counteroffers:
        parts += [Text(), Text("would be met with one of these changed:")]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("constraint", "wanted", "offered"):
            table.add_column(title)
        for offer in failure.counteroffers:
            table.add_row(
                offer.constraint,
                limit(offer.constraint, offer.wanted),
                Text(limit(offer.constraint, offer.offered), style="green"),
            )
        parts.append(table)
    return Group(*parts)


def placement_line(placement: Placement) -> str:
    """Where a replica's layers sit: `18 layers on cpu:0, 12 on cpu:1`."""
    stages = [
        f"{stage.num_layers} on {', '.join(gpu.split('/')[-1] for gpu in stage.gpus)}" for stage in placement.stages
    ]
    return f"layers {', '.join(stages)}"


def limit(constraint: str, value: float) -> str:
    """A constraint's value with its unit."""
    if constraint.endswith("_ms"):
        return duration(value)
    if constraint.endswith("_bytes"):
        return size(value)
    return amount(value)


def _predicted(candidate: Candidate, objective: Objective) -> tuple[str, ...]:
    prediction = candidate.prediction
    score = size(candidate.score) if objective is Objective.MIN_MEMORY else amount(candidate.score)
    return (
        str(candidate.configuration.max_batch),
        duration(prediction.ttft_ms),
        duration(prediction.tpot_ms),
        duration(prediction.e2e_ms),
        size(prediction.memory_bytes),
        score,
    )
