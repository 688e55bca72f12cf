"""Options that several commands share, spelled once."""

from pathlib import Path
from typing import Annotated

import typer

from maveriq.contracts import Objective, Precision, Priority, Strategy

Url = Annotated[
    str, typer.Option("--url", envvar="MAVERIQ_URL", help="Where the cluster's ingress answers.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Target = Annotated[
    str, typer.Argument(help="Model name, or a deployment id (its start is enough).", metavar="ID|MODEL")
]
ModelName = Annotated[str | None, typer.Argument(help="Name of a registered model.", metavar="MODEL")]

ObjectiveOption = Annotated[
    Objective | None,
    typer.Option(
        metavar="OBJECTIVE",
        help=f"What to do best among all that meets the rest: {', '.join(Objective)}. Default: min_cost.",
    ),
]
Percentile = Annotated[
    float | None, typer.Option(help="The latency limits hold for this share of requests, e.g. 95; by default the mean.")
]
TtftMs = Annotated[float | None, typer.Option("--ttft-ms", help="Time to first token, at most.")]
TpotMs = Annotated[float | None, typer.Option("--tpot-ms", help="Time per output token, at most.")]
E2eMs = Annotated[float | None, typer.Option("--e2e-ms", help="Publish to last token, at most.")]
InputTokens = Annotated[int | None, typer.Option(help="Mean prompt length.")]
OutputTokens = Annotated[int | None, typer.Option(help="Mean answer length.")]
Rate = Annotated[float | None, typer.Option("--rate", help="Requests per second.")]
Concurrency = Annotated[int | None, typer.Option(help="Requests in flight, at most; by default no bound.")]
ContextTokens = Annotated[int | None, typer.Option(help="Longest prompt plus answer.")]
MinAccuracy = Annotated[float | None, typer.Option(help="Relative to full precision, e.g. 0.95.")]
AllowUnmeasured = Annotated[
    bool | None,
    typer.Option("--allow-unmeasured-accuracy", help="Let variants pass --min-accuracy that nobody has measured."),
]
GpuTypes = Annotated[
    list[str] | None, typer.Option("--gpu-type", help="A GPU type that is allowed; may be repeated. Default: any.")
]
Precisions = Annotated[
    list[Precision] | None,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help=f"A precision of the weights that is allowed ({', '.join(Precision)}); may be repeated. Default: any.",
    ),
]
MaxPrice = Annotated[
    float | None, typer.Option("--max-price", help="Money an hour for all replicas, in the prices' currency, at most.")
]
MaxGpus = Annotated[int | None, typer.Option(help="GPUs of all replicas together, at most.")]
Replicas = Annotated[
    int | None, typer.Option(help="Full copies that serve side by side; by default as many as the load needs.")
]
StrategyOption = Annotated[
    Strategy | None,
    typer.Option(
        metavar="STRATEGY",
        help=f"Which GPUs are preferred among those that serve equally well: {', '.join(Strategy)}.",
    ),
]
HybridThreshold = Annotated[
    float | None, typer.Option(help="Of --strategy hybrid: share of the time that a GPU is busy.")
]
Tenant = Annotated[str | None, typer.Option(help="On whose quota the memory counts.")]
WaitPriority = Annotated[Priority | None, typer.Option("--priority", help="Among intents that wait for memory.")]
MaxWaitS = Annotated[
    float | None, typer.Option("--max-wait-s", help="Give up after waiting so long for memory; by default never.")
]
HistogramFile = Annotated[
    Path | None, typer.Option("--histogram", help="JSON: sizes of the requests; then GPU types may share them.")
]
TraceFile = Annotated[
    Path | None, typer.Option("--trace", help="CSV of requests, in place of --histogram, as `provision` reads it.")
]
IntentFile = Annotated[
    Path | None, typer.Option("--intent", help="JSON file with an intent to start from; '-' is standard input.")
]

ChatTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of an answer, at most. Default: what fits.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of the answer, at most.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="0: always the likeliest token; more: more varied.")]
TopP = Annotated[
    float | None, typer.Option(min=0, max=1, help="Choose among the likeliest tokens that together have this share.")
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
PriorityOption = Annotated[Priority, typer.Option(help="high is served before normal, normal before low.")]

DEFAULT_URL = "http://127.0.0.1:8000"
