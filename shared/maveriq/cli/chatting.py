"""Asks a deployment and prints the answer as it comes."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from rich.console import Console

from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.figures import duration
from maveriq.cli.finding import find_serving
from maveriq.contracts import Priority

TIERS = {Priority.HIGH: "priority", Priority.NORMAL: "default", Priority.LOW: "flex"}
"""As OpenAI names them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer, with what the client's clock saw."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float
    e2e_ms: float

    @property
    def tpot_ms(self) -> float | None:
        """None for an answer of one token."""
        more = self.completion_tokens - 1
        return (self.e2e_ms - self.ttft_ms) / more if more > 0 else None

    def figures(self) -> str:
        pace = f", TPOT {duration(self.tpot_ms)}" if self.tpot_ms is not None else ""
        return f"{self.completion_tokens} tokens, TTFT {duration(self.ttft_ms)}{pace}, {self.finish_reason}"

    def as_json(self) -> str:
        measured = {"ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms, "e2e_ms": self.e2e_ms}
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return json.dumps({"text": self.text, "finish_reason": self.finish_reason, "usage": usage, **measured})


@dataclass(frozen=True, slots=True)
class Answering:
    """How the requests of one command are sent."""

    api: Api
    target: str
    sampling: Mapping[str, float]
    priority: Priority
    clock: Callable[[], float] = field(default=time.perf_counter)

    def ask(self, path: str, asked: Mapping[str, object], show: Callable[[str], None]) -> Answer:
        """Send one request and hand its text to `show` as it comes. Raises CommandFailed."""
        deployment = find_serving(self.target, self.api.deployments())
        body = {
            "model": str(deployment.deployment_id),
            "stream_options": {"include_usage": True},
            "service_tier": TIERS[self.priority],
            **self.sampling,
            **asked,
        }
        return self._read(self.api.complete(path, body), show)

    def _read(self, events: Iterator[dict[str, Any]], show: Callable[[str], None]) -> Answer:
        started = self.clock()
        first: float | None = None
        pieces: list[str] = []
        usage: dict[str, int] = {}
        finish_reason = ""
        for event in events:
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                delta: dict[str, Any] = choice.get("delta") or {}
                text: str = choice.get("text") or delta.get("content") or ""
                finish_reason = choice.get("finish_reason") or finish_reason
                if text:
                    first = first or self.clock()
                    pieces.append(text)
                    show(text)
        ended = self.clock()
        if not finish_reason:
            raise CommandFailed("the stream ended before the answer did; ask again", code="interrupted")
        return Answer(
            text="".join(pieces),
            finish_reason=finish_reason,
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
            ttft_ms=((first or ended) - started) * 1000,
            e2e_ms=(ended - started) * 1000,
        )


def complete(answering: Answering, prompt: str, console: Console | None) -> None:
    """Continue a text; None prints the whole answer as JSON. Raises CommandFailed."""
    answer = answering.ask("/v1/completions", {"prompt": prompt}, _printer(console))
    _end(answer, console)


def chat_loop(answering: Answering, system: str | None, message: str | None, console: Console | None) -> None:
    """Answer one message, or many until Ctrl-D. Ctrl-C ends an answer. Raises CommandFailed."""
    said = [{"role": "system", "content": system}] if system else []
    if message is not None:
        said.append({"role": "user", "content": message})
        _end(answering.ask("/v1/chat/completions", {"messages": said}, _printer(console)), console)
        return
    assert console is not None, "a conversation has a screen"
    find_serving(answering.target, answering.api.deployments())
    with suppress(ImportError):
        import_module("readline")  # gives input() a history and line editing
    console.print(f"[dim]talking to {answering.target}; Ctrl-C ends an answer, Ctrl-D the conversation[/]")
    while (asked := _ask_person(console)) is not None:
        if asked.strip():
            said.append({"role": "user", "content": asked})
            _turn(answering, said, console)


def _turn(answering: Answering, said: list[dict[str, str]], console: Console) -> None:
    heard: list[str] = []

    def show(text: str) -> None:
        heard.append(text)
        _printer(console)(text)

    try:
        answer = answering.ask("/v1/chat/completions", {"messages": said}, show)
        console.print(f"\n[dim]{answer.figures()}[/]")
    except KeyboardInterrupt:
        console.print("\n[dim]ended by you[/]")
    except CommandFailed as failed:
        console.print(f"\n[red]{failed}[/]")
    if heard:
        said.append({"role": "assistant", "content": "".join(heard)})
    else:
        said.pop()


def _ask_person(console: Console) -> str | None:
    try:
        return console.input("[bold cyan]you ›[/] ")
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _printer(console: Console | None) -> Callable[[str], None]:
    if console is None:
        return lambda text: None
    return lambda text: console.print(text, end="", markup=False, soft_wrap=True)


def _end(answer: Answer, console: Console | None) -> None:
    if console is None:
        print(answer.as_json())
    else:
        console.print()
        Console(stderr=True, highlight=False).print(f"[dim]{answer.figures()}[/]")
