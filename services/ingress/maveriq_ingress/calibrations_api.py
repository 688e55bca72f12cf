"""Calibrations over HTTP: what is known, one asked for, and how far it is."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from uuid import UUID, uuid4

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Endpoint

from maveriq.bus import Bus, Unroutable
from maveriq.contracts import CalibrationProgressed, CalibrationRequested, DoorValue, Fault, rig_name
from maveriq.contracts.accuracy import LayerPrecisions
from maveriq_ingress.bodies import identity, parse, read_body
from maveriq_ingress.calibrations import Calibrations
from maveriq_ingress.errors import refused, unavailable
from maveriq_ingress.event_stream import EventStream
from maveriq_ingress.inventory import Heard, Inventories

POLL_S = 0.5  # any ingress may have heard the news


class CalibrationBody(DoorValue):
    """Which GPU types to calibrate; all that the cluster has where neither is given."""

    node: str | None = Field(default=None, description="A node, or a rig: engine and GPU type in a word.")
    gpu_type: str | None = None
    budget_s: float | None = Field(default=None, gt=0, le=86_400, description="GPU-seconds of each GPU type.")
    precisions: LayerPrecisions = Field(default=(), description="Quantised ones to measure too.")


@dataclass(frozen=True, slots=True)
class CalibrationsApi:
    bus: Bus
    calibrations: Calibrations
    inventories: Inventories

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("/v1/calibrations", self.list_calibrations, methods=["GET"]),
            Endpoint("/v1/calibrations", self.request_calibration, methods=["POST"]),
            Endpoint("/v1/calibrations/{calibration_id}/events", self.follow_calibration, methods=["GET"]),
        ]

    async def list_calibrations(self, request: Request) -> Response:
        known = [one.model_dump(mode="json") for one in await self.calibrations.all()]
        under_way = [one.model_dump(mode="json") for one in await self.calibrations.under_way()]
        return JSONResponse({"object": "list", "data": known, "under_way": under_way})

    async def request_calibration(self, request: Request) -> Response:
        body = parse(await read_body(request), CalibrationBody)
        asked: list[dict[str, object]] = []
        for rig in rigs(await self.inventories.all(), body.node, body.gpu_type):
            wanted = CalibrationRequested(
                calibration_id=uuid4(), node=rig, budget_s=body.budget_s, precisions=body.precisions
            )
            await self.calibrations.accept(wanted)
            try:
                await self.bus.publish(wanted)
            except Unroutable as error:
                await self.calibrations.forget(wanted)
                remedy = "start one where such a GPU is (python -m maveriq_profiler), then ask again"
                raise unavailable(f"no profiler measures {rig}", remedy, "profiler_missing") from error
            asked.append(wanted.model_dump(mode="json"))
        return JSONResponse({"object": "list", "data": asked}, 202)

    async def follow_calibration(self, request: Request) -> Response:
        calibration_id = identity(request.path_params["calibration_id"], "calibration_id")
        if not await self.calibrations.knows(calibration_id):
            problem = f"no calibration {calibration_id} is known"
            remedy = (
                "GET /v1/calibrations lists those under way, POST asks for one; news of one is kept for a day, and of "
                "one that was asked for over AMQP there is none until its profiler begins"
            )
            fault = Fault(field="calibration_id", problem=problem, remedy=remedy)
            raise refused(fault, status=404, code="calibration_not_found")
        return EventStream(self._events(calibration_id))

    async def _events(self, calibration_id: UUID) -> AsyncGenerator[bytes, None]:
        """What was last said of it, then all that follows, to its end. One just asked for says nothing at first."""
        told: CalibrationProgressed | None = None
        while told is None or not told.finished:
            now = await self.calibrations.progress(calibration_id)
            if now is not None and now != told:
                told = now
                yield f"data: {told.model_dump_json()}\n\n".encode()
            else:
                await asyncio.sleep(POLL_S)


def rigs(nodes: list[Heard], node: str | None, gpu_type: str | None) -> list[str]:
    """Names of those meant. Raises HttpError: there is none."""
    known = {
        (heard.inventory.node, state.gpu.gpu_type, rig_name(heard.inventory.engine, state.gpu.gpu_type))
        for heard in nodes
        for state in heard.inventory.gpus
    }
    found = {rig for name, kind, rig in known if node in (None, name, rig) and gpu_type in (None, kind)}
    if not found:
        words = ", ".join(sorted({f"{name} ({kind})" for name, kind, _ in known})) or "none"
        field = "gpu_type" if gpu_type is not None else "node"
        fault = Fault(field=field, problem="no GPU of the cluster is meant", remedy=f"there are: {words}")
        raise refused(fault, status=404 if known else 409)
    return sorted(found)
