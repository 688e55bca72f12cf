"""Chunks as OpenAI's response bodies. Pure: chunks in, JSON-ready dictionaries out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from maveriq.contracts import Chunk, PositionLogprobs, TokenLogprob, Usage

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Heading:
    """What every body of one answer begins with."""

    request_id: UUID
    deployment_id: UUID
    model: str
    created_s: int
    """Since the epoch."""


class Answer(Protocol):
    """One answer, as a stream of bodies or as one."""

    def opening(self) -> Json | None:
        """The body before the first token, where there is one."""
        ...

    def piece(self, chunk: Chunk) -> list[Json]:
        """The bodies of one chunk of a stream."""
        ...

    def usage(self, usage: Usage) -> Json:
        """The body after the last token of a stream."""
        ...

    def whole(self, chunks: Sequence[Chunk]) -> Json:
        """The one body of an answer that is not streamed."""
        ...


@dataclass(slots=True)
class ChatAnswer:
    heading: Heading
    include_usage: bool = False

    def opening(self) -> Json:
        return self._piece({"role": "assistant", "content": ""}, None, None)

    def piece(self, chunk: Chunk) -> list[Json]:
        bodies: list[Json] = []
        if chunk.text or chunk.logprobs:
            logprobs = None if chunk.logprobs is None else _chat_logprobs(chunk.logprobs)
            bodies.append(self._piece({"content": chunk.text}, logprobs, None))
        if chunk.finish_reason is not None:
            bodies.append(self._piece({}, None, str(chunk.finish_reason)))
        return bodies

    def usage(self, usage: Usage) -> Json:
        return self._body("chat.completion.chunk", []) | {"usage": _usage(usage)}

    def whole(self, chunks: Sequence[Chunk]) -> Json:
        positions = _positions(chunks)
        choice: Json = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(chunk.text for chunk in chunks), "refusal": None},
            "logprobs": None if positions is None else _chat_logprobs(positions),
            "finish_reason": _finish(chunks),
        }
        return self._body("chat.completion", [choice]) | {"usage": _usage(chunks[-1].usage)}

    def _piece(self, delta: Json, logprobs: Json | None, finish: str | None) -> Json:
        choice: Json = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        body = self._body("chat.completion.chunk", [choice])
        return body | {"usage": None} if self.include_usage else body

    def _body(self, kind: str, choices: list[Json]) -> Json:
        return _body(self.heading, "chatcmpl", kind, choices)


@dataclass(slots=True)
class CompletionAnswer:
    heading: Heading
    include_usage: bool = False
    _offset_chars: int = field(default=0, init=False)
    """Of the next token within the text so far."""

    def opening(self) -> None:
        return None

    def piece(self, chunk: Chunk) -> list[Json]:
        if not chunk.text and not chunk.logprobs and chunk.finish_reason is None:
            return []
        finish = None if chunk.finish_reason is None else str(chunk.finish_reason)
        body = self._body([self._choice(chunk.text, chunk.logprobs, finish)])
        return [body | {"usage": None} if self.include_usage else body]

    def usage(self, usage: Usage) -> Json:
        return self._body([]) | {"usage": _usage(usage)}

    def whole(self, chunks: Sequence[Chunk]) -> Json:
        text = "".join(chunk.text for chunk in chunks)
        choice = self._choice(text, _positions(chunks), _finish(chunks))
        return self._body([choice]) | {"usage": _usage(chunks[-1].usage)}

    def _choice(self, text: str, positions: Sequence[PositionLogprobs] | None, finish: str | None) -> Json:
        logprobs = None if positions is None else self._logprobs(positions)
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> Json:
        offsets: list[int] = []
        for position in positions:
            offsets.append(self._offset_chars)
            self._offset_chars += len(position.chosen.token)
        return {
            "tokens": [position.chosen.token for position in positions],
            "token_logprobs": [position.chosen.logprob for position in positions],
            "top_logprobs": [
                {one.token: one.logprob for one in (*position.top, position.chosen)} for position in positions
            ],
            "text_offset": offsets,
        }

    def _body(self, choices: list[Json]) -> Json:
        return _body(self.heading, "cmpl", "text_completion", choices)


def _body(heading: Heading, prefix: str, kind: str, choices: list[Json]) -> Json:
    return {
        "id": f"{prefix}-{heading.request_id.hex}",
        "object": kind,
        "created": heading.created_s,
        "model": heading.model,
        "system_fingerprint": f"deployment-{heading.deployment_id}",
        "choices": choices,
    }


def _positions(chunks: Sequence[Chunk]) -> list[PositionLogprobs] | None:
    if all(chunk.logprobs is None for chunk in chunks):
        return None
    return [position for chunk in chunks for position in chunk.logprobs or ()]


def _finish(chunks: Sequence[Chunk]) -> str:
    reason = chunks[-1].finish_reason
    assert reason is not None, "a stream that ends without one raises"
    return str(reason)


def _usage(usage: Usage | None) -> Json | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _chat_logprobs(positions: Sequence[PositionLogprobs]) -> Json:
    return {
        "content": [
            _chat_token(position.chosen) | {"top_logprobs": [_chat_token(one) for one in position.top]}
            for position in positions
        ],
        "refusal": None,
    }


def _chat_token(token: TokenLogprob) -> Json:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token.encode())}
