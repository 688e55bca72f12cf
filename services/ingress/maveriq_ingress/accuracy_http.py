"""Accuracy over HTTP: a measurement is asked for, and looked at until it is finished."""

from dataclasses import dataclass
from uuid import UUID, uuid4

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Endpoint

from maveriq.bus import Bus, Rejected
from maveriq.contracts import AccuracySubmitted, DoorValue, Fault, faults
from maveriq.contracts.accuracy import AccuracyRecord, AccuracyText, AccuracyTokens, LayerPrecisions
from maveriq_ingress.accuracy_handlers import AccuracyHandlers
from maveriq_ingress.bodies import identity, parse, read_body
from maveriq_ingress.errors import refused


class AccuracyBody(DoorValue):
    """The path names the model; who sends no id gets one."""

    accuracy_id: UUID | None = None
    text: AccuracyText
    max_tokens: AccuracyTokens = 4096
    layers: LayerPrecisions = ()


@dataclass(frozen=True, slots=True)
class AccuracyApi:
    bus: Bus
    handlers: AccuracyHandlers

    def endpoints(self) -> list[Endpoint]:
        """To be asked before those of single models, whose names may have slashes."""
        return [
            Endpoint("/v1/models/{name:path}/accuracy", self.submit, methods=["POST"]),
            Endpoint("/v1/models/{name:path}/accuracy/{accuracy_id}", self.get, methods=["GET"]),
        ]

    async def submit(self, request: Request) -> Response:
        body = parse(await read_body(request), AccuracyBody)
        asked = body.model_dump() | {
            "accuracy_id": body.accuracy_id or uuid4(),
            "model": request.path_params["name"],
        }
        try:
            submitted = AccuracySubmitted.model_validate(asked)
        except ValidationError as error:  # the path's name alone was not checked yet
            raise refused(*faults(error, AccuracySubmitted)) from error
        try:
            requested = await self.handlers.on_accuracy_submitted(submitted)
        except Rejected as rejected:
            taken = rejected.faults[0].field == "accuracy_id"
            raise refused(*rejected.faults, status=409 if taken else 404) from rejected
        if requested is not None:
            await self.bus.publish(requested, cause=submitted.accuracy_id)
        record = await self._record(submitted.model, submitted.accuracy_id)
        location = f"/v1/models/{record.model}/accuracy/{record.accuracy_id}"
        return JSONResponse(record.model_dump(mode="json"), 202, {"Location": location})

    async def get(self, request: Request) -> Response:
        accuracy_id = identity(request.path_params["accuracy_id"], "accuracy_id")
        record = await self._record(request.path_params["name"], accuracy_id)
        return JSONResponse(record.model_dump(mode="json"))

    async def _record(self, model: str, accuracy_id: UUID) -> AccuracyRecord:
        """Raises HttpError (404)."""
        record = await self.handlers.accuracies.get(accuracy_id)
        if record is None or record.model != model:
            problem = f"no measurement {accuracy_id} of {model!r} is known"
            remedy = f"ask for one with POST /v1/models/{model}/accuracy; results are kept for a week"
            fault = Fault(field="accuracy_id", problem=problem, remedy=remedy)
            raise refused(fault, status=404, code="accuracy_not_found")
        return record
