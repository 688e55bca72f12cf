"""Options that several commands share, spelled once."""

from pathlib import Path
from typing import Annotated

import typer

from maveriq.contracts import Objective, Priority

Url = Annotated[
    str, typer.Option("--url", envvar="MAVERIQ_URL", help="Where the cluster's ingress answers.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Target = Annotated[
    str, typer.Argument(help="Model name, or a deployment id (its start is enough).", metavar="ID|MODEL")
]
ModelName = Annotated[str | None, typer.Argument(help="Name of a registered model.", metavar="MODEL")]

ObjectiveOption = Annotated[Objective | None, typer.Option(help="What to make small among all that meets the rest.")]
TtftMs = Annotated[float | None, typer.Option("--ttft-ms", help="Time to first token, at most.")]
TpotMs = Annotated[float | None, typer.Option("--tpot-ms", help="Time per output token, at most.")]
E2eMs = Annotated[float | None, typer.Option("--e2e-ms", help="Publish to last token, at most.")]
InputTokens = Annotated[int | None, typer.Option(help="Mean prompt length.")]
OutputTokens = Annotated[int | None, typer.Option(help="Mean answer length.")]
Rate = Annotated[float | None, typer.Option("--rate", help="Requests per second.")]
ContextTokens = Annotated[int | None, typer.Option(help="Longest prompt plus answer.")]
MinAccuracy = Annotated[float | None, typer.Option(help="Relative to full precision, e.g. 0.95.")]
MaxGpus = Annotated[int | None, typer.Option(help="GPUs of all replicas together, at most.")]
Replicas = Annotated[int | None, typer.Option(help="Full copies that serve side by side.")]
IntentFile = Annotated[
    Path | None, typer.Option("--intent", help="JSON file with an intent to start from; '-' is standard input.")
]

MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer; as many as fit by default.")]
Temperature = Annotated[float | None, typer.Option(min=0, max=10, help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(min=0, max=1)]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
PriorityOption = Annotated[Priority, typer.Option(help="high is served before normal.")]

DEFAULT_URL = "http://127.0.0.1:8000"
