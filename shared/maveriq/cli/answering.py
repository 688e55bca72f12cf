"""Sends one request of a command to a deployment and hands over its answer as it comes."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
