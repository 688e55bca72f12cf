"""Talks HTTP to ingress, with the standard library alone."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

from pydantic import ValidationError

from maveriq.contracts import (
    Calibration,
    CalibrationProgressed,
    DefragmentationProgressed,
    Deployment,
    InventoryChanged,
    Model,
)
from maveriq.contracts.accuracy import AccuracyRecord

Told = TypeVar("Told")
Read = Callable[[Any], Told]
"""What an answer's JSON means; ValidationError, LookupError, TypeError or ValueError where it is no such answer."""

ANSWER_TIMEOUT_S = 60.0  # for one answer; a stream may be silent for as long as the model thinks


class CommandFailed(Exception):
    """A command cannot be done; says what to do about it in one line."""

    def __init__(self, problem: str, *, field: str = "", code: str = "failed", exit_code: int = 1) -> None:
        super().__init__(problem if problem.startswith(field) else f"{field}: {problem}")
        self.field = field
        self.code = code
        self.exit_code = exit_code


class Api:
    """One cluster, by the address of its ingress."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandFailed(f"{url!r} is no address of a cluster; e.g. http://127.0.0.1:8000", field="--url")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._secure = parts.scheme == "https"
        try:
            self._address = (parts.hostname, parts.port)
        except ValueError as error:
            raise CommandFailed(f"{url!r}: {error}", field="--url") from error

    def deployments(self, *, in_full: bool = False) -> list[Deployment]:
        """
        Args:
            in_full: with all that was measured, and whole plans; else of each plan the best candidate and the fleet.
        """
        query = {} if in_full else {"brief": "true"}
        return self._call(_each(Deployment.model_validate), "GET", "/v1/deployments", None, query)

    def deployment(self, deployment_id: UUID) -> Deployment:
        return self._call(Deployment.model_validate, "GET", f"/v1/deployments/{deployment_id}")

    def submit(self, intent: Mapping[str, object], *, dry_run: bool) -> Deployment:
        query = {"dry_run": "true"} if dry_run else {}
        return self._call(Deployment.model_validate, "POST", "/v1/intents", intent, query)

    def release(self, deployment_id: UUID) -> None:
        self._call(_nothing, "DELETE", f"/v1/deployments/{deployment_id}")

    def register(self, model: Model) -> None:
        self._call(_nothing, "POST", "/v1/models", model.model_dump(mode="json", exclude_unset=True))

    def models(self) -> list[dict[str, Any]]:
        return self._call(_each(dict[str, Any]), "GET", "/v1/models")

    def submit_accuracy(self, model: str, body: Mapping[str, object]) -> AccuracyRecord:
        return self._call(AccuracyRecord.model_validate, "POST", f"/v1/models/{quote(model)}/accuracy", body)

    def accuracy(self, model: str, accuracy_id: UUID) -> AccuracyRecord:
        return self._call(AccuracyRecord.model_validate, "GET", f"/v1/models/{quote(model)}/accuracy/{accuracy_id}")

    def inventory(self) -> list[InventoryChanged]:
        return self._call(_each(InventoryChanged.model_validate), "GET", "/v1/gpus")

    def defragment(self, wanted: Mapping[str, object]) -> UUID:
        """Ask for one; its id."""
        return self._call(lambda told: UUID(told["defragmentation_id"]), "POST", "/v1/defrag", wanted)

    def defragmentation(self, defragmentation_id: UUID) -> DefragmentationProgressed | None:
        """How far it is; None: nothing was heard of it yet."""
        try:
            return self._call(DefragmentationProgressed.model_validate, "GET", f"/v1/defrag/{defragmentation_id}")
        except CommandFailed as failed:
            if failed.code == "defragmentation_not_found":
                return None
            raise

    def calibrations(self) -> tuple[list[Calibration], list[CalibrationProgressed]]:
        """Those that are known, and those under way."""

        def read(told: Any) -> tuple[list[Calibration], list[CalibrationProgressed]]:
            under_way = [CalibrationProgressed.model_validate(item) for item in told["under_way"]]
            return _each(Calibration.model_validate)(told), under_way

        return self._call(read, "GET", "/v1/calibrations")

    def calibrate(self, wanted: Mapping[str, object]) -> list[tuple[UUID, str]]:
        """Id and rig of each calibration that was asked for."""
        given = {name: value for name, value in wanted.items() if value is not None}
        read = _each(lambda item: (UUID(item["calibration_id"]), str(item["node"])))
        return self._call(read, "POST", "/v1/calibrations", given)

    def calibration_progress(self, calibration_id: UUID) -> Iterator[CalibrationProgressed]:
        """How far it is, and again with each news, to its end."""
        with self._open("GET", f"/v1/calibrations/{calibration_id}/events", None, None) as response:
            yield from _events(response, CalibrationProgressed.model_validate)

    def ready(self) -> bool:
        """Whether ingress answers and says that it is ready."""
        try:
            self._call(_nothing, "GET", "/readyz", timeout_s=2)
        except CommandFailed:
            return False
        return True

    def changes(self, deployment_id: UUID) -> Iterator[Deployment]:
        """The deployment now, and again at each change, until its last state."""
        with self._open("GET", f"/v1/deployments/{deployment_id}/events", None, None) as response:
            yield from _events(response, Deployment.model_validate)

    def complete(self, path: str, body: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """The events of a streamed completion; path is /v1/chat/completions or /v1/completions."""
        with self._open("POST", path, {**body, "stream": True}, None) as response:
            for event in _events(response, dict[str, Any]):
                if "error" in event:
                    raise _failure(event["error"])
                yield event

    def exchange(self, path: str, body: Mapping[str, object]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer, whatever they are. Waits as long as it takes. Raises CommandFailed."""
        with self._connected("POST", path, body, None) as response:
            text = response.read()
        return response.status, _understood(dict[str, Any], response.status, text)

    def _call(
        self,
        read: Read[Told],
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        query: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Told:
        with self._open(method, path, body, query, timeout_s) as response:
            text = response.read()
        return _understood(read, response.status, text or b"{}")

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        query: Mapping[str, str] | None,
        timeout_s: float | None = None,
    ) -> Generator[HTTPResponse, None, None]:
        """A response whose status is a success. Raises CommandFailed."""
        with self._connected(method, path, body, query, timeout_s) as response:
            if response.status >= 400:
                raise _refusal(response.status, response.read())
            yield response

    @contextmanager
    def _connected(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        query: Mapping[str, str] | None,
        timeout_s: float | None = None,
    ) -> Generator[HTTPResponse, None, None]:
        """A response of any status. Raises CommandFailed."""
        host, port = self._address
        kind = HTTPSConnection if self._secure else HTTPConnection
        connection = kind(host, port, timeout=timeout_s)
        try:
            connection.request(
                method,
                path + (f"?{urlencode(query)}" if query else ""),
                None if body is None else json.dumps(body).encode(),
                {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"},
            )
            yield connection.getresponse()
        except ConnectionRefusedError as error:
            raise CommandFailed(
                f"no cluster answers at {self.url}; start one with `maveriq up`, or name it with --url or MAVERIQ_URL",
                code="unreachable",
            ) from error
        except (OSError, HTTPException) as error:
            raise CommandFailed(f"{self.url}: {error or type(error).__name__}", code="unreachable") from error
        finally:
            connection.close()


def _each(read: Read[Told]) -> Read[list[Told]]:
    """Of a list, as OpenAI's API gives one."""
    return lambda told: [read(item) for item in told["data"]]


def _nothing(_: object) -> None:
    """That it was done is all that the answer says."""


def _events(response: HTTPResponse, read: Read[Told]) -> Iterator[Told]:
    """Each `data:` line of a server-sent event stream, to [DONE]."""
    for line in response:
        if line.startswith(b"data:"):
            text = line[5:].strip()
            if text == b"[DONE]":
                return
            yield _understood(read, response.status, text)


def _refusal(status: int, body: bytes) -> CommandFailed:
    try:
        return _failure(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return _no_cluster(status)


def _understood(read: Read[Told], status: int, body: bytes) -> Told:
    """Raises CommandFailed: it is no JSON, or not what a cluster of this version says."""
    try:
        return read(json.loads(body))
    except (ValidationError, LookupError, TypeError, ValueError) as error:
        raise _no_cluster(status) from error


def _no_cluster(status: int) -> CommandFailed:
    told = f"what answers there (HTTP {status}) is no cluster of this version; name one with --url or MAVERIQ_URL"
    return CommandFailed(told, code="no_cluster")


def _failure(error: Mapping[str, Any]) -> CommandFailed:
    """OpenAI's error shape, as ingress gives it."""
    code = str(error.get("code") or error.get("type"))
    return CommandFailed(str(error["message"]), field=str(error.get("param") or ""), code=code)
