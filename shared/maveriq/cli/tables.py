"""Deployments and plans as tables."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from maveriq.cli.figures import (
    SCORE_UNIT,
    amount,
    counted_shape,
    digits,
    duration,
    gpus_of,
    limit,
    missed_by,
    mix,
    runs_as,
    shape,
    size,
)
from maveriq.cli.routes_view import ONLY_FLEET, fleet_words, is_fleet, no_fleet_words, routes_lines
from maveriq.contracts import (
    QUIET_SHARE,
    Candidate,
    Deployment,
    Failure,
    Intent,
    Placement,
    Plan,
    PlannedFleet,
    ReplicaFailed,
    Slo,
    State,
)

STYLE = {
    State.READY: "green",
    State.FAILED: "red",
    State.RELEASED: "dim",
    State.DRAINING: "yellow",
    State.WAITING: "yellow",
}
ROOMY = 7  # columns, beyond which they stand closer together
MIXED_WIDTH = 28  # of what a mixed pipeline runs as: it breaks between its precisions and its layers


def deployments(found: Sequence[Deployment]) -> RenderableType:
    """One row a deployment, newest first."""
    if not found:
        return Text("no deployments; make one with `maveriq deploy MODEL`", style="dim")
    table = columns("id", "model", "state", "replicas", "runs as", "memory", "layers")
    for fixed in (0, 2, 5):
        table.columns[fixed].no_wrap = True
    for each in sorted(found, key=lambda d: d.accepted_at, reverse=True):
        first = each.placements[0] if each.placements else None
        held = sum(stage.reserved_bytes * len(stage.gpus) for p in each.placements for stage in p.stages)
        table.add_row(
            str(each.deployment_id)[:8],
            each.intent.model,
            Text(str(each.state), style=STYLE.get(each.state, "cyan")),
            f"{len(each.ready_replicas)}/{wanted_replicas(each) or '?'}",
            runs_as(first.candidate) if first else "",
            size(held) if held else "",
            " + ".join(str(n) for n in first.layers) if first else "",
        )
    return Group(
        table,
        *(
            Text(line, style="yellow")
            for each in found
            for line in (*_waiting(each), *_trying(each), *_off_prediction(each), *_off_traffic(each))
        ),
        *(Text(line, style="dim") for each in found for line in _routed(each)),
    )


def _routed(deployment: Deployment) -> Iterator[str]:
    if deployment.routes:
        yield f"{str(deployment.deployment_id)[:8]} answers requests by size"
        yield from (f"  {line}" for line in routes_lines(deployment.routes))


def _waiting(deployment: Deployment) -> Iterator[str]:
    if deployment.waiting is not None:
        yield f"{str(deployment.deployment_id)[:8]} waits for memory: {deployment.waiting}"
    if deployment.measuring is not None:
        yield f"{str(deployment.deployment_id)[:8]}: {deployment.measuring}"


def _trying(deployment: Deployment) -> Iterator[str]:
    failed, lacks = deployment.replica_failed, len(deployment.ready_replicas) < (wanted_replicas(deployment) or 0)
    if failed is not None and lacks and deployment.state in (State.RESERVED, State.READY):
        yield f"{str(deployment.deployment_id)[:8]} {engine_failed(failed)}"


def engine_failed(failed: ReplicaFailed) -> str:
    """The last line of what it said: a traceback names its error there."""
    said = failed.detail.strip().splitlines() or ["no word of why"]
    return f"engine of replica {failed.replica} on {failed.node}: {said[-1]}"


def _off_prediction(deployment: Deployment) -> Iterator[str]:
    missed = deployment.prediction_missed
    if missed is not None and deployment.state is State.READY:
        between = f"{duration(missed.interval_ms[0])} to {duration(missed.interval_ms[1])}"
        what = f"{str(deployment.deployment_id)[:8]} {missed.what.removesuffix('_ms')}"
        took = f"{duration(missed.measured_ms)} at batch {missed.batch}"
        yield f"{what} takes {took}, predicted were {between}: planned for again"


def _off_traffic(deployment: Deployment) -> Iterator[str]:
    drifted = deployment.traffic_drifted
    if drifted is not None and deployment.state is State.READY:
        start, served = str(deployment.deployment_id)[:8], drifted.served
        faster = f"{digits(served.request_rate_per_s)} requests/s, planned were {digits(drifted.planned_per_s)}"
        command = f"maveriq provision {deployment.intent.model} --served {start} --from running"
        yield f"{start} answers {faster}; {drifted.moved:.0%} of them have other sizes than planned: {command}"


def columns(*titles: str, right: Sequence[int] = ()) -> Table:
    """A table without lines; the columns numbered `right` hold figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number in right else "left", overflow="fold")
    return table


def candidates(found: Sequence[Candidate], intent: Intent, shown: int, chosen: Candidate | None = None) -> Table:
    """Candidates in their order, with what each is expected to do; memory and price are of all its replicas.

    Args:
        chosen: marked with a star where it is among them; None: the first is the best.
    """
    told = _columns_of(found, intent)
    figures = [number for number, (title, _) in enumerate(told, start=1) if title not in ("runs as", "GPU type")]
    table = columns("#", *(title for title, _ in told), right=(0, *figures))
    split, tight = any(each.stages for each in found[:shown]), len(told) > ROOMY
    for number in figures if split or tight else (1, *figures):
        table.columns[number].no_wrap = True  # or a narrow terminal would cut off figures' units
    if split:
        table.columns[1].min_width = MIXED_WIDTH
    if tight:
        table.padding = (0, 1, 0, 0)
    for rank, each in enumerate(found[:shown], start=1):
        star = each == chosen
        best = star or (chosen is None and rank == 1)
        table.add_row("★" if star else str(rank), *(cell(each) for _, cell in told), style="bold" if best else "")
    return table


def _columns_of(found: Sequence[Candidate], intent: Intent) -> list[tuple[str, Callable[[Candidate], str]]]:
    """Those whose rows differ, and those that are always shown."""
    told: list[tuple[str, Callable[[Candidate], str]]] = [("runs as", counted_shape)]
    if len({gpus_of(each) for each in found}) > 1:
        told.append(("GPU type", lambda c: gpus_of(c).replace("NVIDIA ", "")))
    told.append(("batch", lambda c: str(c.configuration.max_batch)))
    told.extend(_latencies(intent.slo))
    told.append(("memory", lambda c: size(c.prediction.memory_bytes * c.replicas)))
    if len({each.prediction.accuracy for each in found}) > 1:
        told.append(("acc.", lambda c: _known(c.prediction.accuracy, 1)))
    if any(each.prediction.price_per_hour is not None for each in found):
        told.append(("price/h", lambda c: _known(c.prediction.price_per_hour, c.replicas)))
    told.append((f"score\n({SCORE_UNIT[intent.objective]})", lambda c: amount(abs(c.score))))
    return told


def _latencies(slo: Slo) -> list[tuple[str, Callable[[Candidate], str]]]:
    """What the limits are compared with: means, or the percentile that the intent names."""
    if slo.percentile is None:
        return [
            ("TTFT", lambda c: duration(c.prediction.ttft_ms)),
            ("TPOT", lambda c: duration(c.prediction.tpot_ms)),
            ("E2E", lambda c: duration(c.prediction.e2e_ms)),
        ]
    at = f"p{digits(slo.percentile, 4)}"
    return [
        (f"TTFT\n{at}", lambda c: duration(c.prediction.ttft_percentile_ms or c.prediction.ttft_ms)),
        (f"TPOT\n{at}", lambda c: duration(c.prediction.tpot_percentile_ms or c.prediction.tpot_ms)),
        (f"E2E\n{at}", lambda c: duration(c.prediction.e2e_percentile_ms or c.prediction.e2e_ms)),
    ]


def _known(value: float | None, times: int) -> str:
    return "unknown" if value is None else digits(value * times, 4)


def rejections(plan: Plan, shown: int) -> Table:
    """Why each other configuration lost, nearest miss first."""
    table = columns("rejected", "batch", "misses", "wanted", "predicted", "by", right=(1, 3, 4, 5))
    table.style = "dim"
    for each in plan.rejected[:shown]:
        table.add_row(
            shape(each.configuration),
            str(each.configuration.max_batch),
            each.constraint,
            limit(each.constraint, each.wanted),
            limit(each.constraint, each.predicted),
            missed_by(each.wanted, each.predicted),
        )
    return table


def plan_view(plan: Plan, intent: Intent, shown: int) -> Group:
    """The whole plan, `shown` rows of each kind at most."""
    parts: list[RenderableType] = []
    if plan.fleet is not None:
        parts += [*fleet_view(plan.fleet), Text()]
    elif intent.workload.histogram is not None:
        parts += [Text(no_fleet_words(intent), style="yellow"), Text()]
    if plan.candidates:
        parts += [candidates(plan.candidates, intent, shown), *room_words(plan)]
    else:
        parts.append(Text(ONLY_FLEET, style="yellow"))
    parts += provisional(plan.offered[0])
    if plan.rejected:
        parts += [Text(), rejections(plan, shown)]
    kept = f", best {len(plan.candidates)} kept, ranked by {intent.objective}" if plan.candidates else ""
    parts += [Text(), Text(f"{plan.num_considered} configurations considered{kept}", style="dim")]
    return Group(*parts)


def room_words(plan: Plan) -> Iterator[Text]:
    """Whether what was free holds what is shown first, where somebody looked."""
    fit, kept = plan.num_fitting, len(plan.candidates)
    if fit == 0:
        told = "none of these fits what is free now: a deploy waits for memory, or fails where all of it is too little"
        yield Text(told, style="yellow")
    elif fit is not None and fit < kept:
        first = "the first fits" if fit == 1 else f"the first {fit} fit"
        yield Text(f"{first} what is free now, the others need more; each group is ranked by itself", style="dim")


def provisional(best: Candidate) -> Iterator[Text]:
    """Said where a prediction rests on a measurement that others disturbed."""
    others = best.prediction.others
    if others > QUIET_SHARE:
        yield Text(
            f"! provisional: others took {digits(100 * others, 2)} % of {gpus_of(best)} while it was measured; the "
            "intervals are as much wider, and it is measured again when it is quiet",
            style="yellow",
        )


def fleet_view(fleet: PlannedFleet) -> Iterator[RenderableType]:
    """A fleet that comes before all candidates, and who serves what."""
    yield Text(f"fleet: {fleet_words(fleet)}", style="bold")
    yield from (Text(f"  {line}") for line in routes_lines(fleet.routes))


def failure_view(failure: Failure, intent: Intent) -> Group:
    """Why a deployment failed, and the nearest intents that would have worked."""
    parts: list[RenderableType] = [Text(f"{failure.reason}: {failure.detail}", style="red")]
    if failure.counteroffers:
        parts += [Text(), Text("would be met with one of these changed:")]
        table = columns("constraint", "wanted", "offered", "change", right=(1, 2, 3))
        for offer in failure.counteroffers:
            allowed = getattr(offer.intent, offer.constraint, None)
            if isinstance(allowed, tuple):
                named: tuple[str, ...] = cast(tuple[str, ...], allowed)
                before: tuple[str, ...] = getattr(intent, offer.constraint) or ()
                cells = (", ".join(before), ", ".join(named), "")
            elif offer.words:
                cells = ("", offer.words, "")
            else:
                wanted, offered = limit(offer.constraint, offer.wanted), limit(offer.constraint, offer.offered)
                cells = (wanted, offered, missed_by(offer.wanted, offer.offered))
            table.add_row(offer.constraint, cells[0], Text(cells[1], style="green"), cells[2])
        parts.append(table)
    return Group(*parts)


def placement_line(placement: Placement) -> str:
    """Where a replica's layers sit: `18 on cpu:0, 12 on cpu:1`, or `18 (6 x fp32 + 12 x int8) on cpu:0, ...`."""
    stages = [
        f"{stage.num_layers}{f' ({mix(stage.precisions)})' if stage.precisions else ''} on "
        f"{', '.join(gpu.split('/')[-1] for gpu in stage.gpus)}"
        for stage in placement.stages
    ]
    return f"layers {', '.join(stages)}"


def wanted_replicas(deployment: Deployment) -> int | None:
    """How many are to serve; None: not planned yet."""
    if deployment.plan is not None and deployment.plan.fleet is not None and is_fleet(deployment):
        return sum(part.replicas for part in deployment.plan.fleet.parts)
    if deployment.placements:
        return deployment.placements[0].candidate.replicas
    return deployment.plan.num_replicas if deployment.plan else deployment.intent.replicas
