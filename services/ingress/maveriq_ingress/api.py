"""MaverIQ's own endpoints: intents, deployments and their events, GPUs, and the models that both APIs list."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID, uuid4

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Endpoint

from maveriq.bus import Bus, QueueFull, Rejected, Unavailable, Unroutable
from maveriq.contracts import (
    Deployment,
    DeploymentChanged,
    Fault,
    Intent,
    IntentSubmitted,
    Message,
    Model,
    ModelRegistered,
    ModelSubmitted,
    ReleaseRequested,
    State,
)
from maveriq_ingress.bodies import flag, identity, parse, read_body
from maveriq_ingress.briefs import Briefs
from maveriq_ingress.changes import Changes
from maveriq_ingress.errors import refused
from maveriq_ingress.event_stream import EventStream
from maveriq_ingress.handlers import Handlers, unknown

DEPLOYMENT_HEADER = "X-Deployment-Id"
DECLARING_S = 3
NEWS = (DeploymentChanged, ModelRegistered)  # facts for whoever listens; nobody must

log = structlog.get_logger()


class IntentBody(Intent):
    """An intent, and the id that the producer chose for its deployment."""

    deployment_id: UUID | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Api:
    """Does over HTTP what the same handlers do over AMQP."""

    bus: Bus
    handlers: Handlers
    changes: Changes
    briefs: Briefs

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("/v1/intents", self.submit_intent, methods=["POST"]),
            Endpoint("/v1/deployments", self.list_deployments, methods=["GET"]),
            Endpoint("/v1/deployments/{deployment_id}", self.get_deployment, methods=["GET"]),
            Endpoint("/v1/deployments/{deployment_id}", self.release_deployment, methods=["DELETE"]),
            Endpoint("/v1/deployments/{deployment_id}/events", self.follow_deployment, methods=["GET"]),
            Endpoint("/v1/models", self.register_model, methods=["POST"]),
            Endpoint("/v1/gpus", self.list_gpus, methods=["GET"]),
        ]

    async def submit_intent(self, request: Request) -> Response:
        body = parse(await read_body(request), IntentBody)
        header = request.headers.get(DEPLOYMENT_HEADER)
        chosen = body.deployment_id if header is None else identity(header, DEPLOYMENT_HEADER)
        if body.deployment_id not in (None, chosen):
            raise refused(Fault(field="deployment_id", problem=f"differs from {DEPLOYMENT_HEADER}", remedy="send one"))
        submitted = IntentSubmitted(
            deployment_id=chosen or uuid4(),
            intent=Intent.model_validate(body.model_dump(exclude={"deployment_id", "dry_run"})),
            dry_run=body.dry_run or flag(request, "dry_run"),
        )
        deployment = await self._accept(submitted)
        location = f"/v1/deployments/{deployment.deployment_id}"
        return JSONResponse(deployment.model_dump(mode="json"), 202, {"Location": location})

    async def _accept(self, submitted: IntentSubmitted) -> Deployment:
        """Admitted, kept and passed on, in this order; what cannot be passed on is not kept either."""
        try:
            await self._publish(submitted.deployment_id, await self.handlers.on_intent_submitted(submitted))
        except Rejected as rejected:
            taken = rejected.faults[0].field == "deployment_id"
            faults = [one.model_copy(update={"field": one.field.removeprefix("intent.")}) for one in rejected.faults]
            raise refused(*faults, status=409 if taken else 400) from rejected
        except (Unavailable, Unroutable, QueueFull):
            await self.handlers.statuses.forget(submitted.deployment_id)
            raise
        return await self._deployment(submitted.deployment_id)

    async def list_deployments(self, request: Request) -> Response:
        """With `brief=true` of each plan the best candidate alone."""
        if flag(request, "brief"):
            found = await self.briefs.all()
            return Response(f'{{"object":"list","data":[{",".join(found)}]}}', media_type="application/json")
        deployments = await self.handlers.statuses.all()
        return JSONResponse({"object": "list", "data": [one.model_dump(mode="json") for one in deployments]})

    async def get_deployment(self, request: Request) -> Response:
        deployment = await self._deployment(_named(request))
        return JSONResponse(deployment.model_dump(mode="json"))

    async def release_deployment(self, request: Request) -> Response:
        deployment_id = _named(request)
        try:
            replies = await self.handlers.on_release_requested(ReleaseRequested(deployment_id=deployment_id))
        except Rejected as rejected:
            raise refused(*rejected.faults, status=404) from rejected
        await self._publish(deployment_id, replies)
        return JSONResponse((await self._deployment(deployment_id)).model_dump(mode="json"), 202)

    async def follow_deployment(self, request: Request) -> Response:
        deployment_id = _named(request)
        await self._deployment(deployment_id)
        return EventStream(self._events(deployment_id))

    async def _events(self, deployment_id: UUID) -> AsyncGenerator[bytes, None]:
        """The deployment as it is, then at each change, to its end."""
        with self.changes.following(deployment_id) as changed:
            deployment = await self._deployment(deployment_id)
            yield _event(deployment)
            while not _ended(deployment):
                later = await changed.get()
                if later.changed_at > deployment.changed_at:
                    deployment = later
                    yield _event(deployment)

    async def register_model(self, request: Request) -> Response:
        model = parse(await read_body(request), Model)
        await self._publish(uuid4(), (await self.handlers.on_model_submitted(ModelSubmitted(model=model)),))
        return JSONResponse(model.model_dump(mode="json"), 201)

    async def list_gpus(self, request: Request) -> Response:
        nodes: list[dict[str, object]] = []
        for heard in await self.handlers.inventories.all():
            gpus = [gpu.model_dump(mode="json") | {"free_bytes": gpu.free_bytes} for gpu in heard.inventory.gpus]
            ours: dict[str, object] = {"gpus": gpus, "heard_at": heard.heard_at.isoformat()}
            nodes.append(heard.inventory.model_dump(mode="json") | ours)
        return JSONResponse({"object": "list", "data": nodes})

    async def _deployment(self, deployment_id: UUID) -> Deployment:
        """Raises HttpError (404)."""
        deployment = await self.handlers.statuses.get(deployment_id)
        if deployment is None:
            raise refused(unknown(deployment_id), status=404, code="deployment_not_found")
        return deployment

    async def _publish(self, cause: UUID, messages: Sequence[Message]) -> None:
        """Publish what a handler returned, as the bus does with a message's replies.

        Raises:
            Unavailable, Unroutable, QueueFull.
        """
        for message in messages:
            if isinstance(message, NEWS):
                with suppress(Unroutable):
                    await self.bus.publish(message, cause=cause)
            else:
                await self._publish_to_service(message, cause)
            if message.correlation is not None:
                log.info("message caused", caused=message.topic, deployment_id=str(message.correlation))

    async def _publish_to_service(self, message: Message, cause: UUID) -> None:
        """The first service to start declares all queues; until then, for a moment, there is none."""
        for _ in range(DECLARING_S * 10):
            with suppress(Unroutable):
                return await self.bus.publish(message, cause=cause)
            await asyncio.sleep(0.1)
        return await self.bus.publish(message, cause=cause)


def _named(request: Request) -> UUID:
    return identity(request.path_params["deployment_id"])


def _ended(deployment: Deployment) -> bool:
    planned = deployment.dry_run and deployment.state is State.PLANNED
    return planned or deployment.state in (State.RELEASED, State.FAILED)


def _event(deployment: Deployment) -> bytes:
    return f"id: {deployment.changed_at.isoformat()}\ndata: {deployment.model_dump_json()}\n\n".encode()
