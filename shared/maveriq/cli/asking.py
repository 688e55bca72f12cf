"""The options of an intent, spelled once for every command that takes one."""

import inspect
from collections.abc import Callable
from typing import Any

from maveriq.cli import options as o
from maveriq.cli.histograms import sizes_of
from maveriq.cli.intents import build_intent
from maveriq.cli.reading import read_text
from maveriq.contracts import Intent


def takes_intent(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the intent's options in place of its parameter `intent`: typer reads them from the signature.

    Raises:
        CommandFailed: when called with options that are no intent.
    """
    asked = inspect.signature(read_intent)
    own = inspect.signature(command)
    mine = [each.replace(kind=each.KEYWORD_ONLY) for name, each in own.parameters.items() if name != "intent"]

    def run(**given: Any) -> None:
        intent = read_intent(**{name: given.pop(name) for name in asked.parameters})
        command(intent=intent, **given)

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__annotations__ = {p.name: p.annotation for p in (*asked.parameters.values(), *mine)}
    run.__signature__ = own.replace(parameters=[*asked.parameters.values(), *mine])  # type: ignore[attr-defined]
    return run


def read_intent(
    *,
    model: o.ModelName = None,
    objective: o.ObjectiveOption = None,
    ttft_ms: o.TtftMs = None,
    tpot_ms: o.TpotMs = None,
    e2e_ms: o.E2eMs = None,
    percentile: o.Percentile = None,
    input_tokens: o.InputTokens = None,
    output_tokens: o.OutputTokens = None,
    rate: o.Rate = None,
    concurrency: o.Concurrency = None,
    context_tokens: o.ContextTokens = None,
    histogram: o.HistogramFile = None,
    trace: o.TraceFile = None,
    min_accuracy: o.MinAccuracy = None,
    allow_unmeasured: o.AllowUnmeasured = None,
    gpu_types: o.GpuTypes = None,
    precisions: o.Precisions = None,
    max_price: o.MaxPrice = None,
    max_gpus: o.MaxGpus = None,
    replicas: o.Replicas = None,
    strategy: o.StrategyOption = None,
    hybrid_threshold: o.HybridThreshold = None,
    tenant: o.Tenant = None,
    priority: o.WaitPriority = None,
    max_wait_s: o.MaxWaitS = None,
    intent_file: o.IntentFile = None,
) -> Intent:
    """Options on top of what a file says. Raises CommandFailed."""
    given = {
        "objective": objective, "slo.percentile": percentile,
        "slo.ttft_ms": ttft_ms, "slo.tpot_ms": tpot_ms, "slo.e2e_ms": e2e_ms,
        "workload.input_tokens": input_tokens, "workload.output_tokens": output_tokens,
        "workload.request_rate_per_s": rate, "workload.concurrency": concurrency,
        "workload.context_tokens": context_tokens, "workload.histogram": sizes_of(histogram, trace),
        "min_accuracy": min_accuracy, "allow_unmeasured_accuracy": allow_unmeasured,
        "gpu_types": gpu_types or None, "precisions": precisions or None,
        "max_price_per_hour": max_price, "max_gpus": max_gpus, "replicas": replicas,
        "strategy": strategy, "hybrid_threshold": hybrid_threshold, "tenant": tenant, "priority": priority,
        "max_wait_s": max_wait_s,
    }  # fmt: skip
    return build_intent(model, given, None if intent_file is None else read_text(intent_file, "--intent"))
