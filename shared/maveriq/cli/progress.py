"""A deployment's way through its states, live on a terminal and as plain lines elsewhere."""

import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.text import Text

from maveriq.cli.figures import counted_shape, duration, size
from maveriq.cli.routes_view import fleet_words, no_fleet_words
from maveriq.cli.tables import engine_failed, placement_line, wanted_replicas
from maveriq.contracts import Deployment, State

STATES = tuple(State)
DONE = "✓"
NEXT = {
    State.ACCEPTED: "measuring what the model costs on these GPUs",
    State.MEASURED: "weighing configurations",
    State.PLANNED: "reserving fragments",
    State.WAITING: "waiting for memory; Ctrl-C leaves it waiting, `maveriq rm` gives it up",
    State.RESERVED: "starting the engine",
    State.DRAINING: "answering what is queued",
}


class Progress:
    """Prints each state once, with the facts that came with it, and shows what is being done now."""

    def __init__(self, console: Console, *, last: State = State.READY, first: State = State.ACCEPTED) -> None:
        """Args:
        last: the state at which nothing more is waited for.
        first: what was known before it is not told again.
        """
        self._console = console
        self._last = last
        self._printed = set(STATES[: STATES.index(first)])
        self._since = self._started = time.monotonic()
        self._status: Status | None = None
        self._failed: set[str] = set()
        self._placed: set[str] = set()

    def __enter__(self) -> "Progress":
        self._say("waiting for ingress")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say(None)

    def on_change(self, deployment: Deployment) -> None:
        """Print what is new."""
        self._setback(deployment)
        for state in STATES[: STATES.index(deployment.state) + 1]:
            if state in self._printed or (state is not deployment.state and not facts(state, deployment)):
                continue
            self._printed.update(STATES[: STATES.index(state) + 1])  # what comes late is no news any more
            if state is not State.FAILED and (state is not State.DRAINING or self._last is State.RELEASED):
                self._line(state, facts(state, deployment), "…" if state is State.WAITING else DONE)
        doing = deployment.measuring or NEXT.get(deployment.state)
        self._say(None if deployment.state is self._last else doing)

    def _setback(self, deployment: Deployment) -> None:
        """An engine that failed; where its replica is placed next is news again."""
        failed, placed = deployment.replica_failed, {placement.token for placement in deployment.placements}
        if failed is not None and failed.token not in self._failed:
            self._failed.add(failed.token)
            self._line("failed", engine_failed(failed), "!")
        if self._failed and placed - self._placed:
            self._printed.discard(State.RESERVED)
        self._placed |= placed

    def _line(self, what: str, words: str, mark: str) -> None:
        took_ms = (time.monotonic() - self._since) * 1000
        self._since = time.monotonic()
        line = Text(f"{mark} ", style="green" if mark == DONE else "yellow").append(f"{what:<9}", style="bold")
        line.append(f"{duration(took_ms):>8}  ", style="dim").append(words, style="default")
        self._console.print(line, soft_wrap=False)

    def _say(self, doing: str | None) -> None:
        """What is being done now; None ends it. Only a terminal shows it."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if doing is not None and self._console.is_terminal:
            self._status = self._console.status(f"[dim]{doing} ...[/]", spinner="dots")
            self._status.start()


def facts(state: State, deployment: Deployment) -> str:
    """What became known with a state; '' where it has not been reached."""
    if state is State.ACCEPTED:
        return f"{deployment.intent.model}, {deployment.intent.objective}, id {str(deployment.deployment_id)[:8]}"
    if state is State.MEASURED:
        return "; ".join([*_sampled(deployment), *_calibrated(deployment)])
    if state is State.PLANNED and deployment.plan:
        if deployment.plan.fleet is not None:
            return f"fleet of {fleet_words(deployment.plan.fleet)}"
        best = deployment.plan.candidates[0]
        words = (
            f"best of {deployment.plan.num_considered}: {counted_shape(best)}, "
            f"TTFT {duration(best.prediction.ttft_ms)}, TPOT {duration(best.prediction.tpot_ms)}"
        )
        asked = deployment.intent
        return words if asked.workload.histogram is None else f"{words}; {no_fleet_words(asked)}"
    if state is State.WAITING:
        return deployment.waiting or ""
    if state is State.RESERVED and deployment.placements:
        held = sum(s.reserved_bytes * len(s.gpus) for p in deployment.placements for s in p.stages)
        return f"{size(held)}; " + "; ".join(placement_line(each) for each in deployment.placements)
    if state is State.READY and deployment.ready_replicas:
        return f"{len(deployment.ready_replicas)} of {wanted_replicas(deployment)} replicas serve"
    ending = {State.DRAINING: "no new requests", State.RELEASED: "memory is free again"}
    return ending.get(state, "") if deployment.state is not State.FAILED else ""


def _sampled(deployment: Deployment) -> Iterator[str]:
    if deployment.fingerprints:
        samples = sum(len(each.samples) for each in deployment.fingerprints)
        types = ", ".join(sorted({each.gpu_type for each in deployment.fingerprints}))
        precisions = ", ".join(dict.fromkeys(str(each.precision) for each in deployment.fingerprints))
        cost_s = sum(each.cost_s for each in deployment.fingerprints)
        yield f"{samples} samples on {types} ({precisions}); they cost {cost_s:.1f} s, once"


def _calibrated(deployment: Deployment) -> Iterator[str]:
    for each in deployment.calibrations:
        yield f"{each.gpu_type} is calibrated from {each.scope.num_samples} samples of {each.scope.num_models} models"
