"""OpenAI's list of models: those registered and those deployed, with what is ready of each."""

from collections.abc import Iterable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Endpoint

from maveriq.contracts import State
from maveriq_ingress.admission import name_another
from maveriq_ingress.changes import Changes
from maveriq_ingress.errors import model_not_found
from maveriq_ingress.models import Models, Registration
from maveriq_ingress.routing import Route


@dataclass(frozen=True, slots=True)
class OpenAiModels:
    models: Models
    changes: Changes

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("/v1/models", self.list, methods=["GET"]),
            Endpoint("/v1/models/{name:path}", self.get, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [one for _, one in sorted((await self._entries()).items())]})

    async def get(self, request: Request) -> Response:
        name = request.path_params["name"]
        entries = await self._entries()
        if name in entries:
            return JSONResponse(entries[name])
        route = self.changes.routes.get(name)
        if route is not None and route.state is State.READY:
            return JSONResponse(_entry(name, await self.models.get(route.model), [route]))
        raise model_not_found(name, name_another(name, entries))

    async def _entries(self) -> dict[str, dict[str, object]]:
        registered = await self.models.all()
        deployed = self.changes.routes.models()
        return {
            name: _entry(name, registered.get(name), deployed.get(name, ()))
            for name in registered.keys() | deployed.keys()
        }


def _entry(name: str, registration: Registration | None, routes: Iterable[Route]) -> dict[str, object]:
    """OpenAI's four fields, and ours."""
    times = [route.accepted_at for route in routes]
    created = registration.registered_at if registration is not None else min(times)
    return {
        "id": name,
        "object": "model",
        "created": int(created.timestamp()),
        "owned_by": "maveriq",
        "ready": any(route.state is State.READY for route in routes),
        "deployments": [{"deployment_id": str(route.deployment_id), "state": route.state} for route in routes],
        "registered": None if registration is None else registration.model.model_dump(mode="json"),
    }
