"""`maveriq provision`: which GPUs to rent. Reads files and, for a model's law, ingress; the planner's package answers.

No cluster is asked where the files say it all: the answer is worked out here, by the installed planner.
"""

import json as json_text
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from maveriq.cli import options as o
from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.finding import find
from maveriq.cli.fleet_plot import draw_fleet
from maveriq.cli.fleet_tables import fleet_name, fleet_view
from maveriq.cli.intents import build_intent, checked
from maveriq.cli.law_files import law_sources
from maveriq.cli.plotting import check_plot
from maveriq.cli.reading import planners, read_json, read_text
from maveriq.contracts import Intent, Workload
from maveriq.contracts.provisioning import (
    Catalogue,
    Fleet,
    FleetTerms,
    Histogram,
    LawSources,
    ProvisioningRefused,
    ProvisioningRequest,
)

ENTRY_POINTS = "maveriq.provisioning"
"""Group under which the planner's distribution names what answers."""

_OPTIONS = {
    "workload": "--trace",
    "trace": "--trace",
    "histogram": "--histogram",
    "melange": "--melange-config",
    "catalogue": "--catalogue",
    "only": "--only",
    "headroom": "--headroom",
    "recovery_minutes": "--recovery-minutes",
    "horizon_h": "--horizon-h",
    "start_cost": "--start-cost",
    "stop_cost": "--stop-cost",
    "time_limit_s": "--time-limit-s",
    "request_rate_per_s": "--rate",
    "peak_window_s": "--peak-window-s",
    "buckets": "--buckets",
    "running": "--from",
}
"""Where a field is an option, or what a file holds."""
_LIMITS = {"slo", "min_accuracy", "allow_unmeasured_accuracy", "precisions"}
"""Of an intent, that throughputs are within."""


def provision(
    model: o.ModelName = None,
    trace: Annotated[
        Path | None, typer.Option(help="CSV of requests: arrival, prompt and output tokens, as Azure's traces.")
    ] = None,
    histogram: Annotated[Path | None, typer.Option(help="JSON: edges, distribution and request rate.")] = None,
    served: Annotated[
        str | None, typer.Option(help="A deployment that `ps` calls asked otherwise than planned: what it served.")
    ] = None,
    melange_config: Annotated[
        Path | None, typer.Option("--melange-config", help="Mélange's JSON, workload and GPUs; answers in its format.")
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="JSON of what can be rented; by default the list prices that ship.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A row or GPU type to choose from; may be repeated.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Requests a second, in place of the workload's.")] = None,
    peak_window_s: Annotated[
        float | None, typer.Option("--peak-window-s", help="Plan for the trace's busiest stretch of so long.")
    ] = None,
    buckets: Annotated[int, typer.Option(help="Most sizes told apart, of prompts and of answers.")] = 6,
    ttft_ms: o.TtftMs = None,
    tpot_ms: o.TpotMs = None,
    e2e_ms: o.E2eMs = None,
    percentile: o.Percentile = None,
    min_accuracy: o.MinAccuracy = None,
    allow_unmeasured: o.AllowUnmeasured = None,
    precisions: o.Precisions = None,
    headroom: Annotated[float, typer.Option(help="Share of load to bear beyond the workload's, e.g. 0.2.")] = 0.0,
    n_plus_one: Annotated[
        bool, typer.Option("--n-plus-one", help="Bear the whole load after the loss of any one instance.")
    ] = False,
    spot: Annotated[
        bool, typer.Option("--spot", help="Rent what can be taken away too, where a row prices it.")
    ] = False,
    recovery_minutes: Annotated[
        float, typer.Option("--recovery-minutes", help="Until a lost or new instance serves.")
    ] = 10.0,
    running: Annotated[
        str | None, typer.Option("--from", help='What runs: "running" (the cluster\'s GPUs), or a JSON file of counts.')
    ] = None,
    horizon_h: Annotated[float, typer.Option("--horizon-h", help="Hours over which a change must pay.")] = 24.0,
    start_cost: Annotated[
        float | None, typer.Option("--start-cost", help="Of an instance more; its price while it recovers.")
    ] = None,
    stop_cost: Annotated[float, typer.Option("--stop-cost", help="Of an instance less.")] = 0.0,
    time_limit_s: Annotated[
        float, typer.Option("--time-limit-s", help="Then the best found so far, with its gap.")
    ] = 10.0,
    unnormalised: Annotated[
        bool, typer.Option("--unnormalised", help="Mélange's distribution need not sum to 1.")
    ] = False,
    law: Annotated[Path | None, typer.Option(help="What --save-law wrote, in place of asking the cluster.")] = None,
    save_law: Annotated[
        Path | None, typer.Option("--save-law", help="Keep the model's facts and calibrations.")
    ] = None,
    save_intent: Annotated[
        Path | None, typer.Option("--save-intent", help="With --served: its intent for what it served, to deploy anew.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the JSON here too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw cost by request rate, and who serves what.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Buckets listed.")] = 12,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Find the cheapest GPUs to rent for a workload, and who serves which requests."""
    answer: Callable[[ProvisioningRequest], Fleet] = planners(ENTRY_POINTS)
    if plot is not None:
        check_plot(plot)
    if save_intent is not None and served is None:
        raise CommandFailed("goes with --served, which says whose intent", field="--save-intent", exit_code=2)
    intent = {
        "slo.ttft_ms": ttft_ms, "slo.tpot_ms": tpot_ms, "slo.e2e_ms": e2e_ms, "slo.percentile": percentile,
        "min_accuracy": min_accuracy, "allow_unmeasured_accuracy": allow_unmeasured, "precisions": precisions or None,
    }  # fmt: skip
    anew = None if served is None else _served(served, histogram, url)
    sizes = histogram if anew is None else anew.workload.histogram
    limits = None if anew is None else anew.model_dump_json(include=_LIMITS)
    sources = None if model is None else law_sources(Api(url), build_intent(model, intent, limits), law, save_law)
    terms = {
        "headroom": headroom, "spare": n_plus_one, "spot": spot, "recovery_minutes": recovery_minutes,
        "horizon_h": horizon_h, "start_cost": start_cost, "stop_cost": stop_cost, "time_limit_s": time_limit_s,
        "running": None if running is None else _running(running, url),
    }  # fmt: skip
    request = _request(
        trace, sizes, melange_config, catalogue, checked(FleetTerms, terms, _OPTIONS), sources,
        {
            "only": tuple(only or ()), "request_rate_per_s": rate, "peak_window_s": peak_window_s, "buckets": buckets,
            "unnormalised": unnormalised, "curve": plot is not None,
        },
    )  # fmt: skip
    fleet, console = _answered(answer, request), Console(highlight=False) if not json else None
    _show(fleet, plot, output, top, console)
    if save_intent is not None and anew is not None:
        _save(anew, save_intent, served, console)


def _request(
    trace: Path | None, histogram: Path | Histogram | None, melange: Path | None, catalogue: Path | None,
    terms: FleetTerms, sources: LawSources | None, plain: dict[str, object],
) -> ProvisioningRequest:  # fmt: skip
    body: dict[str, object] = {
        **plain,
        "trace": None if trace is None else read_text(trace, "--trace"),
        "melange": None if melange is None else read_text(melange, "--melange-config"),
        "histogram": _file_of(Histogram, histogram, "--histogram") if isinstance(histogram, Path) else histogram,
        "catalogue": None if catalogue is None else _file_of(Catalogue, catalogue, "--catalogue"),
        "terms": terms,
        "law": sources,
    }
    return checked(ProvisioningRequest, body, _OPTIONS)


def _answered(answer: Callable[[ProvisioningRequest], Fleet], request: ProvisioningRequest) -> Fleet:
    try:
        return answer(request)
    except ProvisioningRefused as refused:
        fault = refused.fault
        exit_code = 1 if refused.code in ("infeasible", "no_throughput", "unsound") else 2
        raise CommandFailed(
            f"{fault.problem}; {fault.remedy}", field=_OPTIONS.get(fault.field.split(".")[0], fault.field),
            code=refused.code, exit_code=exit_code,
        ) from refused  # fmt: skip


def _show(fleet: Fleet, plot: Path | None, output: Path | None, top: int, console: Console | None) -> None:
    """None as console prints JSON."""
    plain = fleet.model_dump_json(exclude={"melange"}) if fleet.melange is None else json_text.dumps(fleet.melange)
    if plot is not None:
        draw_fleet(fleet, plot)
    if output is not None:
        _write(output, plain, "--output")
    if console is None:
        print(plain)
        return
    console.print(fleet_view(fleet, top))
    for path, what in ((plot, "shows cost by request rate, and who serves what"), (output, "holds it as JSON")):
        if path is not None:
            console.print(f"[green]✓[/] {path} {what}")


def _served(target: str, histogram: Path | None, url: str) -> Intent:
    """The intent of a deployment that is asked otherwise than planned, for what it served when that was last told."""
    if histogram is not None:
        raise CommandFailed("--histogram and --served both say the workload", field="--served", exit_code=2)
    deployment = find(target, Api(url).deployments())
    if deployment.traffic_drifted is None:
        problem = f"{target} is asked as it was planned, or was deployed without --histogram or --trace"
        raise CommandFailed(problem, field="--served", code="not_drifted")
    kept = deployment.intent.workload.model_dump(include={"context_tokens", "concurrency"})
    workload = Workload.model_validate({**kept, "histogram": deployment.traffic_drifted.served})
    return deployment.intent.model_copy(update={"workload": workload})


def _save(anew: Intent, path: Path, served: str | None, console: Console | None) -> None:
    _write(path, anew.model_dump_json(exclude_defaults=True), "--save-intent")
    if console is not None:
        console.print(f"[green]✓[/] {path} serves that: maveriq deploy --intent {path}, then maveriq rm {served}")


def _write(path: Path, text: str, option: str) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise CommandFailed(f"cannot write {path}: {error}", field=option) from error


def _running(source: str, url: str) -> dict[str, object]:
    """Instances by row or GPU type: of the cluster's GPUs, or of a file with counts or an earlier answer."""
    if source == "running":
        nodes = [Counter(state.gpu.gpu_type for state in node.gpus) for node in Api(url).inventory()]
        return dict(Counter(f"{kind} x {size}" for node in nodes for kind, size in node.items()))
    body = read_json(Path(source), "--from")
    if not isinstance(body, dict):
        raise CommandFailed('give counts, e.g. {"aws g6.xlarge": 3}', field="--from", exit_code=2)
    counts = cast("dict[str, object]", body)
    if "rented" not in counts:
        return {name: count for name, count in counts.items() if name != "cost"}  # as Mélange writes its result
    found: dict[str, object] = {}
    for one in checked(Fleet, counts, {}).rented:
        before = found.get(fleet_name(one), 0)
        found[fleet_name(one)] = one.count + (before if isinstance(before, int) else 0)
    return found


def _file_of(wanted: Any, path: Path, option: str) -> Any:
    try:
        return checked(wanted, read_json(path, option), {})
    except CommandFailed as failed:
        raise CommandFailed(f"{path}: {failed}", field=option, code=failed.code, exit_code=failed.exit_code) from failed
