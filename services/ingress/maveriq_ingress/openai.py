"""OpenAI's inference endpoints: a request goes to a deployment's queue, its chunks come back as JSON or as events."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID, uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Endpoint

from maveriq.contracts import Chunk, RequestSubmitted
from maveriq.inbox import RequestFailed
from maveriq.streams import Streams
from maveriq_ingress.admission import listed
from maveriq_ingress.bodies import deadline_s, parse, read_body
from maveriq_ingress.changes import Changes
from maveriq_ingress.errors import model_not_found, of_inference, unavailable
from maveriq_ingress.event_stream import EventStream, while_connected
from maveriq_ingress.models import Models
from maveriq_ingress.openai_answers import Answer, ChatAnswer, CompletionAnswer, Heading
from maveriq_ingress.openai_requests import Asked, ChatBody, CompletionBody, of_chat, of_completion
from maveriq_ingress.routing import NoRoute

SILENCE_S = 5.0  # a stream that has no token by then sends its headers, so that heartbeats can follow
DONE = b"data: [DONE]\n\n"

Chunks = AsyncGenerator[Chunk, None]


@dataclass(frozen=True, slots=True)
class OpenAi:
    streams: Streams
    changes: Changes
    models: Models

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("/v1/chat/completions", self.chat, methods=["POST"]),
            Endpoint("/v1/completions", self.complete, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        asked = of_chat(parse(await read_body(request), ChatBody))
        heading = await self._heading(asked.model)
        return await self._respond(request, asked, heading, ChatAnswer(heading, asked.include_usage))

    async def complete(self, request: Request) -> Response:
        asked = of_completion(parse(await read_body(request), CompletionBody))
        heading = await self._heading(asked.model)
        return await self._respond(request, asked, heading, CompletionAnswer(heading, asked.include_usage))

    async def _heading(self, model: str) -> Heading:
        return Heading(
            request_id=uuid4(),
            deployment_id=await self._deployment(model),
            model=model,
            created_s=int(time.time()),
        )

    async def _deployment(self, model: str) -> UUID:
        """Raises HttpError: 404 where nothing of that name is deployed, 503 where it is not ready."""
        chosen = self.changes.routes.pick(model)
        if isinstance(chosen, UUID):
            return chosen
        if chosen is NoRoute.NOT_READY:
            raise unavailable(
                f"no deployment of {model!r} is ready yet", "try again in a moment", "deployment_not_ready"
            )
        deployed = self.changes.routes.models()
        if model in await self.models.all():
            raise model_not_found(model, f"it is registered only: deploy it (POST /v1/intents){_or_one_of(deployed)}")
        raise model_not_found(model, f"deploy it (POST /v1/intents){_or_one_of(deployed)}")

    async def _respond(self, request: Request, asked: Asked, heading: Heading, answer: Answer) -> Response:
        submitted = RequestSubmitted(
            deployment_id=heading.deployment_id,
            request_id=heading.request_id,
            prompt=asked.prompt,
            messages=asked.messages,
            sampling=asked.sampling,
        )
        chunks = self.streams.generate(
            submitted,
            priority=asked.priority,
            deadline_s=deadline_s(request),
            routes=self.changes.routes.by_size(heading.deployment_id),
        )
        try:
            if asked.stream:
                return await _streamed(request, answer, chunks, include_usage=asked.include_usage)
            return JSONResponse(answer.whole(await while_connected(request.receive, _all(chunks))))
        except RequestFailed as failed:
            raise of_inference(failed.error) from failed


async def _all(chunks: Chunks) -> list[Chunk]:
    async with aclosing(chunks):
        return [chunk async for chunk in chunks]


async def _streamed(request: Request, answer: Answer, chunks: Chunks, *, include_usage: bool) -> Response:
    """The headers wait for the first chunk, for SILENCE_S at most: what fails at once gets a status of its own."""
    first = asyncio.ensure_future(anext(chunks))
    try:
        await while_connected(request.receive, asyncio.wait((first,), timeout=SILENCE_S))
        if first.done():
            first.result()
    except BaseException:
        await _abandon(first, chunks)
        raise
    return EventStream(_events(answer, first, chunks, include_usage=include_usage))


async def _events(
    answer: Answer, first: "asyncio.Future[Chunk]", chunks: Chunks, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    try:
        chunk = await first
        opening = answer.opening()
        if opening is not None:
            yield _event(opening)
        for body in answer.piece(chunk):
            yield _event(body)
        async for later in chunks:
            chunk = later
            for body in answer.piece(chunk):
                yield _event(body)
        if include_usage and chunk.usage is not None:
            yield _event(answer.usage(chunk.usage))
        yield DONE
    except RequestFailed as failed:
        yield _event(of_inference(failed.error).body())
    finally:
        await _abandon(first, chunks)


async def _abandon(first: "asyncio.Future[Chunk]", chunks: Chunks) -> None:
    """Stop waiting, so that an answer nobody reads is cancelled."""
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await chunks.aclose()


def _event(body: dict[str, object]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _or_one_of(names: Mapping[str, object]) -> str:
    return f", or name one of: {listed(names)}" if names else ""
