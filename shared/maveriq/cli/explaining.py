"""Why a plan is as it is: what was asked, what won and against what, the front, what each other missed.

Pure: an intent and its plan in, text to print out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

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
    shape,
    size,
)
from maveriq.cli.routes_view import ONLY_FLEET, no_fleet_words
from maveriq.cli.tables import candidates, columns, fleet_view, provisional, room_words
from maveriq.contracts import Basis, Candidate, Intent, Interval, Objective, Plan, Rejection

BASIS = {
    Basis.CALIBRATION: "calibration: the law with this GPU type's constants; the model itself was not run",
    Basis.FINGERPRINT: "fingerprint: this model, cut to a few layers, was run on this GPU type",
    Basis.MAVERIQ: "method that MaverIQ published, applied to this model's fingerprint",
    Basis.AICONFIGURATOR: "vendor's tables (aiconfigurator); nothing was run",
}
BEST = {
    Objective.MIN_LATENCY: "least end-to-end latency",
    Objective.MIN_COST: "least latency x memory",
    Objective.MIN_MEMORY: "least memory",
    Objective.MIN_GPU_COST: "least latency x GPUs",
    Objective.MIN_PRICE: "lowest price",
    Objective.MAX_THROUGHPUT: "most throughput",
}


def explanation(plan: Plan, intent: Intent, shown: int) -> Group:
    """The whole story, `shown` rows of each kind at most."""
    parts: list[RenderableType] = [_titled("asked"), asked(intent)]
    for best in plan.candidates[:1] or plan.offered:
        parts += [Text(), _titled("chosen", f"{counted_shape(best)} on {gpus_of(best)}")]
        parts += [*_split(best), _expected(best), *provisional(best)]
    parts += [Text(), *_why(plan, intent)]
    if plan.fleet is not None:
        parts += [Text(), _titled("fleet", "GPU types that share the requests by size; placed where all of it fits")]
        parts += fleet_view(plan.fleet)
    elif intent.workload.histogram is not None:
        parts += [Text(), Text(no_fleet_words(intent), style="yellow")]
    if plan.front:
        words = "none other is as good in latency, memory, price and accuracy"
        parts += [Text(), _titled("front", words), candidates(plan.front, intent, shown, plan.offered[0])]
    if plan.rejected:
        parts += [Text(), _titled("rejected", "nearest miss of each kind first"), *_rejected(plan, shown)]
    tally = f"{plan.num_considered} configurations considered; {len(plan.candidates)} that meet it are kept"
    return Group(*parts, Text(), Text(tally, style="dim"))


def asked(intent: Intent) -> Table:
    """The intent in words: what was left open is said too."""
    work, slo = intent.workload, intent.slo
    who = "the mean request" if slo.percentile is None else f"{digits(slo.percentile)} % of requests"
    limits = [
        f"{name} at most {duration(value)}"
        for name, value in (("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms), ("E2E", slo.e2e_ms))
        if value is not None
    ]
    flight = "" if work.concurrency is None else f", at most {work.concurrency} in flight"
    bounds = [
        f"at most {intent.max_gpus} GPUs" if intent.max_gpus else "",
        f"at most {digits(intent.max_price_per_hour, 4)} per hour" if intent.max_price_per_hour else "",
        f"on {', '.join(intent.gpu_types)}" if intent.gpu_types else "",
        f"in {', '.join(intent.precisions)}" if intent.precisions else "",
        "" if intent.replicas is None else f"{intent.replicas} replicas",
    ]
    floor = "any" if intent.min_accuracy is None else f"at least {digits(intent.min_accuracy, 4)} of full precision"
    if intent.min_accuracy is not None and intent.allow_unmeasured_accuracy:
        floor += ", or not measured"
    table = columns("", "")
    rows = (
        ("objective", f"{intent.objective}: {BEST[intent.objective]}"),
        ("model", intent.model),
        ("workload", f"{work.input_tokens} tokens in, {work.output_tokens} out, "
                     f"{digits(work.request_rate_per_s)} requests/s{flight}"),
        ("latency", f"{', '.join(limits)}, for {who}" if limits else "no limit"),
        ("accuracy", floor),
        ("means", ", ".join(bound for bound in bounds if bound) or "any"),
    )  # fmt: skip
    for name, words in rows:
        table.add_row(f"  {name}", words)
    table.show_header = False
    return table


def _why(plan: Plan, intent: Intent) -> Iterator[RenderableType]:
    if plan.candidates:
        yield _titled("why", f"{BEST[intent.objective]} of all that meet the intent{_room(plan)}")
        yield from reasons(plan, intent.objective)
        yield from room_words(plan)
    else:
        yield _titled("why", ONLY_FLEET)


def reasons(plan: Plan, objective: Objective) -> Iterator[RenderableType]:
    """Against the next in rank, and against the next of another kind: another precision, GPU type or parallelism."""
    best, *others = plan.candidates[: plan.num_fitting or None]
    if not others:
        yield Text(f"  nothing else meets the intent{_room(plan)}")
        return
    rivals = [("next", others[0])]
    different = next((other for other in others if _kind(other) != _kind(best)), None)
    if different is not None and different is not others[0]:
        rivals.append(("other kind", different))
    table = columns("", "", "", "E2E", "memory", f"score ({SCORE_UNIT[objective]})", "", right=(2, 3, 4, 5, 6))
    for which, each in (("chosen", best), *rivals):
        c = each.configuration
        elsewhere = "" if gpus_of(each) == gpus_of(best) else f" on {gpus_of(each)}"
        table.add_row(
            f"  {which}", counted_shape(each) + elsewhere, f"batch {c.max_batch}", duration(each.prediction.e2e_ms),
            size(each.prediction.memory_bytes * each.replicas), amount(abs(each.score)),
            "" if each is best else missed_by(abs(best.score), abs(each.score)),
        )  # fmt: skip
    yield table
    if others[0].score == best.score:
        yield Text("  equal scores: what takes fewer bytes, then fewer GPUs, then is faster comes first")
    mine, theirs = best.prediction.e2e_interval_ms, others[0].prediction.e2e_interval_ms
    if mine is not None and theirs is not None and mine.low <= theirs.high and theirs.low <= mine.high:
        yield Text("  the intervals of the first two latencies overlap: the next may well be as fast")


def _room(plan: Plan) -> str:
    """Among what the first was chosen, where not all that meets the intent fits."""
    return " and fit what is free now" if plan.num_fitting and plan.num_fitting < len(plan.candidates) else ""


def _kind(candidate: Candidate) -> tuple[object, ...]:
    c = candidate.configuration
    return (c.gpu_type, c.engine, c.tp, c.pp, c.precision, c.kv_precision, c.variant)


def _split(best: Candidate) -> Iterator[RenderableType]:
    """What the planner has split, stage by stage; first layer 0."""
    if not best.stages:
        return
    table = columns("  stage", "GPU type", "layers", "precisions", "holds", right=(4,))
    first = 0
    for number, stage in enumerate(best.stages):
        table.add_row(
            f"  {number}", stage.gpu_type, f"{first} to {first + stage.num_layers - 1}", mix(stage.precisions),
            size(stage.reserved_bytes),
        )  # fmt: skip
        first += stage.num_layers
    yield table
    yield Text("  accuracy is exp(-sum) of what each layer costs the output, measured one at a time")
    yield Text()


def _expected(best: Candidate) -> Group:
    """Each figure with its percentile and the interval that its mean lies in."""
    p, c = best.prediction, best.configuration
    table = columns(
        "  of each replica", "mean", f"p{digits(p.percentile)}", "90 % interval of the mean", right=(1, 2, 3)
    )
    rows: tuple[tuple[str, float, float | None, Interval | None, Callable[[float], str]], ...] = (
        ("TTFT", p.ttft_ms, p.ttft_percentile_ms, p.ttft_interval_ms, duration),
        ("TPOT", p.tpot_ms, p.tpot_percentile_ms, p.tpot_interval_ms, duration),
        ("E2E", p.e2e_ms, p.e2e_percentile_ms, p.e2e_interval_ms, duration),
        ("tokens/s", p.throughput_tokens_per_s, None, p.throughput_interval_tokens_per_s, amount),
        ("memory", p.memory_bytes, None, p.memory_interval_bytes, size),
    )
    for name, mean, worse, interval, shown in rows:
        table.add_row(
            f"  {name}", shown(mean), "" if worse is None else shown(worse),
            "not known" if interval is None else f"{shown(interval.low)} to {shown(interval.high)}",
        )  # fmt: skip
    copies = "1 replica" if best.replicas == 1 else f"{best.replicas} replicas"
    gpus = "1 GPU" if c.num_gpus == 1 else f"{c.num_gpus} GPUs"
    more = [
        f"{copies} of {gpus}, batch up to {c.max_batch}, context {c.context_tokens} tokens",
        f"accuracy {'not measured' if p.accuracy is None else f'{digits(p.accuracy, 4)} of full precision'}",
        f"{amount(p.gpu_s)} GPU-seconds a request",
    ]
    if p.price_per_hour is not None:
        each = "" if p.price_per_million_tokens is None else f", {digits(p.price_per_million_tokens)} a million tokens"
        more.append(f"price {digits(p.price_per_hour * best.replicas)} per hour{each}")
    if p.goodput_tokens_per_s is not None:
        more.append(f"meets the limits up to {amount(p.goodput_tokens_per_s)} tokens/s")
    return Group(table, *(Text(f"  {line}") for line in (*more, f"from the {BASIS[p.basis]}")))


def _rejected(plan: Plan, shown: int) -> Iterator[RenderableType]:
    groups: defaultdict[str, list[Rejection]] = defaultdict(list)
    for each in plan.rejected:
        groups[each.constraint].append(each)
    for constraint, missed in groups.items():
        wanted = limit(constraint, missed[0].wanted)
        yield Text(f"  {constraint}  wanted {wanted}; {len(missed)} listed miss it", style="bold")
        table = columns("", "", "", "", "", right=(2, 3, 4))
        table.show_header = False
        for each in missed[:shown]:
            c = each.configuration
            predicted = (limit(constraint, each.predicted), missed_by(each.wanted, each.predicted))
            table.add_row(f"    {shape(c)}", c.gpu_type, f"batch {c.max_batch}", *predicted)
        yield table
        if len(missed) > shown:
            yield Text(f"    and {len(missed) - shown} more; --top shows them", style="dim")


def _titled(title: str, words: str = "") -> Text:
    return Text.assemble((f"{title:<10}", "bold cyan"), words)
