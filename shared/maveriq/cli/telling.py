"""The demo's words: the intent, what each state of its deployment brought, and predicted against measured."""

import asyncio
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from maveriq.cli.api import Api
from maveriq.cli.bars import draw
from maveriq.cli.figures import duration, runs_as
from maveriq.cli.story import Story, comparison
from maveriq.cli.tables import candidates, placement_line, rejections
from maveriq.contracts import Deployment, Intent, Placement, ReplicaReady, State


def intent_words(intent: Intent) -> Text:
    slo, workload = intent.slo, intent.workload
    assert slo.ttft_ms is not None and slo.tpot_ms is not None and intent.min_accuracy is not None, "it says them"
    return Text.assemble(
        "serve ", (intent.model, "bold"), f" for prompts of {workload.input_tokens} and answers of ",
        f"{workload.output_tokens} tokens, first token within {duration(slo.ttft_ms)}, each other within ",
        f"{duration(slo.tpot_ms)}, at least {100 * intent.min_accuracy:.0f} % of its full accuracy, as cheap as ",
        "possible. ",
        ("No GPU, parallelism or precision is named.", "dim"),
    )  # fmt: skip


class Teller:
    """Prints each state of the deployment with what became known in it."""

    def __init__(self, story: Story, api: Api) -> None:
        self._story = story
        self._api = api
        self._told: set[State] = set()

    def on_change(self, deployment: Deployment) -> None:
        if deployment.fingerprints and State.MEASURED not in self._told:
            self._told.add(State.MEASURED)
            self._story.section("fingerprint", _fingerprint_words(deployment, self._story.elapsed_s))
            self._story.doing("weighing configurations")
        if deployment.plan and State.PLANNED not in self._told:
            self._told.add(State.PLANNED)
            plan = deployment.plan
            parts = [candidates(plan.candidates, deployment.intent, 5)]
            if plan.rejected:
                parts.append(rejections(plan, 2))
            self._story.section(f"plan  {len(plan.candidates)} of {plan.num_considered} configurations meet it", *parts)
            self._story.doing("reserving fragments")
        if deployment.placements and State.RESERVED not in self._told:
            self._told.add(State.RESERVED)
            self._story.doing("starting one process for each stage (the first run converts the checkpoint)")

    async def finish(self, deployment: Deployment) -> None:
        """What is held and where, once it serves."""
        nodes = await asyncio.to_thread(self._api.inventory)
        names = {deployment.deployment_id: deployment.intent.model}
        placed = deployment.placements[0]
        words = Text(f"{runs_as(placed.candidate)}: {placement_line(placed)}", style="bold")
        passed_over = _passed_over(deployment, placed)
        self._story.section("fragments taken, engine ready", words, *passed_over, draw(nodes, names))


def _passed_over(deployment: Deployment, placed: Placement) -> list[Text]:
    """Why it is not the first candidate that runs, if it is not."""
    assert deployment.plan is not None, "it was placed"
    rank = deployment.plan.candidates.index(placed.candidate) + 1
    if rank == 1:
        return []
    passed = "candidate 1 does" if rank == 2 else f"candidates 1 to {rank - 1} do"
    return [Text(f"candidate {rank}: {passed} not fit what is free", style="dim")]


def _fingerprint_words(deployment: Deployment, elapsed_s: float) -> Text:
    words = Text()
    for number, each in enumerate(deployment.fingerprints):
        layers = ", ".join(str(n) for n in sorted({sample.num_layers for sample in each.samples}))
        words.append("\n" if number else "")
        words.append(f"{each.precision!s:<5}", style="bold")
        words.append(f"{len(each.samples)} samples of {layers} layers with random weights on {each.gpu_type}, ")
        words.append(f"{each.cost_s:.1f} s", style="bold")
    if sum(each.cost_s for each in deployment.fingerprints) > elapsed_s:
        words.append("\nmeasured in an earlier run: taken from the catalogue", style="green")
    return words


@dataclass(frozen=True, slots=True)
class Measured:
    """One answer by its reader's clock."""

    ttft_ms: float
    tpot_ms: float | None
    """None for an answer of one token."""
    num_tokens: int


def compared(deployment: Deployment, answer: Measured, ready: ReplicaReady) -> Table:
    placed = deployment.placements[0]
    best = placed.candidate.prediction
    rows = [("time to first token", best.ttft_ms, answer.ttft_ms)]
    if answer.tpot_ms is not None:
        rows.append(("time per output token", best.tpot_ms, answer.tpot_ms))
    last = len(placed.stages) - 1
    memory = placed.candidate.memory
    for at, (stage, measured_bytes) in enumerate(zip(placed.stages, ready.stage_bytes, strict=False)):
        kept_bytes = memory.of_stage(stage.num_layers, first=at == 0, last=at == last) - memory.runtime_bytes
        rows.append((f"stage {at + 1}: weights and KV cache", kept_bytes, measured_bytes))
    return comparison(rows)
