"""Answers a file of requests through ingress, many at a time and after everybody else's, and keeps the answers."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from maveriq.cli.answering import TIERS
from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.batch_lines import (
    BatchRequest,
    answer_line,
    answered,
    failure_line,
    first_reason,
    read_requests,
)
from maveriq.cli.figures import digits
from maveriq.cli.finding import find_serving
from maveriq.cli.reading import read_text
from maveriq.contracts import Priority

MAX_TRIES = 5
RETRY_S = 2.0  # doubled with each try
WORTH_RETRYING = frozenset({408, 409, 429, 500, 502, 503, 504})
UNDER_WAY = 2  # requests for each decode slot: the next is queued when one ends
MAX_UNDER_WAY = 512  # connections of one command


@dataclass(slots=True)
class Tally:
    """What became of the requests so far."""

    num_answered: int = 0
    num_failed: int = 0
    num_before: int = 0
    """Answered by an earlier run."""
    output_tokens: int = 0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens / max(1e-9, time.monotonic() - self.started_s)


def run_batch(api: Api, file: Path, output: Path | None, target: str | None, console: Console | None) -> None:
    """Answer what has no answer yet. Raises CommandFailed: the input is at fault, or requests failed."""
    requests = read_requests(read_text(file, "FILE").split("\n"), target)
    output = output or _named_after(file)
    errors = output.with_suffix(".errors.jsonl")
    before = _prepare(output)
    asked = [request for request in requests if request.custom_id not in before]
    errors.unlink(missing_ok=True)
    tally = Tally(num_before=len(requests) - len(asked))
    if asked:
        num_at_once = min(_slots(api, asked) * UNDER_WAY, MAX_UNDER_WAY, len(asked))
        try:
            _Batch(api, tally, output, errors, console).run(asked, num_at_once)
        except KeyboardInterrupt as stopped:
            num_kept = tally.num_before + tally.num_answered
            problem = f"stopped: {num_kept} of {len(requests)} are answered in {output}, and the same command goes on"
            raise CommandFailed(problem, code="stopped") from stopped
    _tell(tally, output, errors, console)
    if tally.num_failed and console is None:
        raise SystemExit(1)  # it was told already
    if tally.num_failed:
        first = first_reason(read_text(errors, "--output"))
        failed = f"{tally.num_failed} of {len(requests)} requests failed, {first}"
        raise CommandFailed(f"{failed}; {errors} has all, and the same command asks again")


def _named_after(file: Path) -> Path:
    if str(file) == "-":
        raise CommandFailed("name a file: standard input has no name to call it after", field="--output", exit_code=2)
    return file.with_suffix(".out.jsonl")


def _prepare(output: Path) -> frozenset[str]:
    """Whose answers the output has; a line that a kill cut off is dropped."""
    if not output.parent.is_dir():
        raise CommandFailed(f"there is no folder {output.parent}", field="--output", exit_code=2)
    if not output.exists():
        return frozenset()
    text = read_text(output, "--output")
    ids, whole = answered(text)
    if whole < len(text):
        output.write_text(text[:whole], encoding="utf-8")
    return frozenset(ids)


def _slots(api: Api, asked: Sequence[BatchRequest]) -> int:
    """Decode slots of the deployments that answer these models. Raises CommandFailed: one is not deployed."""
    known = api.deployments()
    serving = {each.deployment_id: each for each in (find_serving(m, known) for m in {r.model for r in asked})}
    placements = [placement for each in serving.values() for placement in each.placements]
    return max(1, sum(placement.candidate.configuration.max_batch for placement in placements))


class _Batch:
    """Threads that each send one request at a time: they wait for answers, which takes no CPU."""

    def __init__(self, api: Api, tally: Tally, output: Path, errors: Path, console: Console | None) -> None:
        self._api, self._tally, self._output, self._errors = api, tally, output, errors
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(), console=console, disable=console is None, transient=True,
        )  # fmt: skip

    def run(self, asked: Sequence[BatchRequest], num_at_once: int) -> None:
        waiting, lines = SimpleQueue[BatchRequest | None](), SimpleQueue[tuple[str, int | None] | Exception]()
        for request in (*asked, *[None] * num_at_once):
            waiting.put(request)
        for _ in range(num_at_once):  # daemons: Ctrl-C ends the command at once, and ingress cancels what it waits for
            threading.Thread(target=self._ask_all, args=(waiting, lines.put), daemon=True).start()
        with self._progress:
            shown = self._progress.add_task("batch", total=len(asked), pace="")
            for _ in asked:
                told = lines.get()
                if isinstance(told, Exception):
                    raise told
                self._keep(*told, shown)

    def _ask_all(
        self, waiting: SimpleQueue[BatchRequest | None], tell: Callable[[tuple[str, int | None] | Exception], None]
    ) -> None:
        while (request := waiting.get()) is not None:
            try:
                tell(self._ask(request))
            except Exception as error:  # a thread's error is the command's
                tell(error)

    def _ask(self, request: BatchRequest) -> tuple[str, int | None]:
        """The answer's line and its tokens; None: it failed. Raises CommandFailed: nobody answers any more."""
        body = {**request.body, "service_tier": TIERS[Priority.LOW]}
        line, lost = "", False
        for attempt in range(MAX_TRIES):
            if attempt:
                time.sleep(RETRY_S * 2 ** (attempt - 1))
            try:
                status, answer = self._api.exchange(request.path, body)
            except CommandFailed as failed:
                line, lost = failure_line(request, failed.code, str(failed)), True
                continue
            line, lost = answer_line(request, status, answer), False
            if status < 400:
                return line, _tokens(answer)
            if status not in WORTH_RETRYING:
                break
        if lost and not self._api.ready():
            problem = f"{self._api.url} answers no more; what it answered is kept, and the same command goes on"
            raise CommandFailed(problem, code="unreachable")
        return line, None

    def _keep(self, line: str, num_tokens: int | None, shown: TaskID) -> None:
        path = self._errors if num_tokens is None else self._output
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise CommandFailed(f"cannot write {path}: {error}", field="--output") from error
        if num_tokens is None:
            self._tally.num_failed += 1
        else:
            self._tally.num_answered += 1
            self._tally.output_tokens += num_tokens
        self._progress.update(shown, advance=1, pace=f"{self._tally.tokens_per_s:.0f} tokens/s")


def _tokens(answer: dict[str, Any]) -> int:
    usage: dict[str, int] = answer.get("usage") or {}
    return usage.get("completion_tokens", 0)


def _tell(tally: Tally, output: Path, errors: Path, console: Console | None) -> None:
    if console is None:
        told = {
            "answered": tally.num_answered, "answered_before": tally.num_before, "failed": tally.num_failed,
            "output_tokens": tally.output_tokens, "tokens_per_s": round(tally.tokens_per_s, 1),
            "output": str(output), "errors": str(errors) if tally.num_failed else None,
        }  # fmt: skip
        print(json.dumps(told))
        return
    before = f", {tally.num_before} before" if tally.num_before else ""
    pace = f"; {tally.output_tokens} tokens, {digits(tally.tokens_per_s)} a second" if tally.num_answered else ""
    console.print(f"[green]✓[/] {tally.num_answered} answered{before}{pace}: {output}", soft_wrap=True)
