"""Defragmentations over HTTP: asked for, kept in Redis as the allocator tells them, read to their end."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from pydantic import Field
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Endpoint

from maveriq.bus import Bus, Handler
from maveriq.contracts import DefragmentationProgressed, DefragmentationRequested, DoorValue, Fault
from maveriq_ingress.bodies import identity, parse, read_body
from maveriq_ingress.errors import refused

KEEP_S = 24 * 3600


class DefragmentationBody(DoorValue):
    """What to make room for; the first deployment that waits where no GPU is named."""

    apply: bool = Field(default=False, description="False: only plan and tell.")
    free_gpu: str | None = Field(default=None, min_length=1)


@dataclass(frozen=True, slots=True)
class Defragmentations:
    redis: Redis

    async def on_defragmentation_progressed(self, message: DefragmentationProgressed) -> None:
        """Keep it, unless later news came first."""
        known = await self.get(str(message.defragmentation_id))
        if known is None or (message.num_done, message.finished) >= (known.num_done, known.finished):
            await self.redis.set(_key(str(message.defragmentation_id)), message.model_dump_json(), ex=KEEP_S)

    async def get(self, defragmentation_id: str) -> DefragmentationProgressed | None:
        text = await self.redis.get(_key(defragmentation_id))
        return None if text is None else DefragmentationProgressed.model_validate_json(text)

    def all(self) -> list[Handler[Any]]:
        return [Handler(DefragmentationProgressed, self.on_defragmentation_progressed)]


@dataclass(frozen=True, slots=True)
class DefragApi:
    bus: Bus
    defragmentations: Defragmentations

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("/v1/defrag", self.request, methods=["POST"]),
            Endpoint("/v1/defrag/{defragmentation_id}", self.read, methods=["GET"]),
        ]

    async def request(self, request: Request) -> Response:
        body = parse(await read_body(request), DefragmentationBody)
        asked = DefragmentationRequested(defragmentation_id=uuid4(), apply=body.apply, free_gpu=body.free_gpu)
        await self.bus.publish(asked)
        headers = {"Location": f"/v1/defrag/{asked.defragmentation_id}"}
        return JSONResponse(asked.model_dump(mode="json"), 202, headers)

    async def read(self, request: Request) -> Response:
        defragmentation_id = identity(request.path_params["defragmentation_id"], "defragmentation_id")
        told = await self.defragmentations.get(str(defragmentation_id))
        if told is None:
            fault = Fault(
                field="defragmentation_id",
                problem="nothing was heard of it yet",
                remedy="ask again in a moment, or POST /v1/defrag for a new one",
            )
            raise refused(fault, status=404, code="defragmentation_not_found")
        return JSONResponse(told.model_dump(mode="json"))


def _key(defragmentation_id: str) -> str:
    return f"maveriq:ingress:defragmentation:{defragmentation_id}"
