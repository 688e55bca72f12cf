"""Talks HTTP to ingress, with the standard library alone."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

from maveriq.contracts import (
    Calibration,
    CalibrationProgressed,
    DefragmentationProgressed,
    Deployment,
    InventoryChanged,
    Model,
)
from maveriq.contracts.accuracy import AccuracyRecord

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
        answer = self._call("GET", "/v1/deployments", None, query)
        return [Deployment.model_validate(item) for item in answer["data"]]

    def deployment(self, deployment_id: UUID) -> Deployment:
        return Deployment.model_validate(self._call("GET", f"/v1/deployments/{deployment_id}"))

    def submit(self, intent: Mapping[str, object], *, dry_run: bool) -> Deployment:
        query = {"dry_run": "true"} if dry_run else {}
        return Deployment.model_validate(self._call("POST", "/v1/intents", intent, query))

    def release(self, deployment_id: UUID) -> None:
        self._call("DELETE", f"/v1/deployments/{deployment_id}")

    def register(self, model: Model) -> None:
        self._call("POST", "/v1/models", model.model_dump(mode="json", exclude_unset=True))

    def models(self) -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = self._call("GET", "/v1/models")["data"]
        return data

    def submit_accuracy(self, model: str, body: Mapping[str, object]) -> AccuracyRecord:
        return AccuracyRecord.model_validate(self._call("POST", f"/v1/models/{quote(model)}/accuracy", body))

    def accuracy(self, model: str, accuracy_id: UUID) -> AccuracyRecord:
        return AccuracyRecord.model_validate(self._call("GET", f"/v1/models/{quote(model)}/accuracy/{accuracy_id}"))

    def inventory(self) -> list[InventoryChanged]:
        return [InventoryChanged.model_validate(item) for item in self._call("GET", "/v1/gpus")["data"]]

    def defragment(self, wanted: Mapping[str, object]) -> UUID:
        """Ask for one; its id."""
        return UUID(self._call("POST", "/v1/defrag", wanted)["defragmentation_id"])

    def defragmentation(self, defragmentation_id: UUID) -> DefragmentationProgressed | None:
        """How far it is; None: nothing was heard of it yet."""
        try:
            told = self._call("GET", f"/v1/defrag/{defragmentation_id}")
        except CommandFailed as failed:
            if failed.code == "defragmentation_not_found":
                return None
            raise
        return DefragmentationProgressed.model_validate(told)

    def calibrations(self) -> tuple[list[Calibration], list[CalibrationProgressed]]:
        """Those that are known, and those under way."""
        told = self._call("GET", "/v1/calibrations")
        known = [Calibration.model_validate(item) for item in told["data"]]
        return known, [CalibrationProgressed.model_validate(item) for item in told["under_way"]]

    def calibrate(self, wanted: Mapping[str, object]) -> list[tuple[UUID, str]]:
        """Id and rig of each calibration that was asked for."""
        told = self._call("POST", "/v1/calibrations", {k: v for k, v in wanted.items() if v is not None})
        return [(UUID(item["calibration_id"]), item["node"]) for item in told["data"]]

    def calibration_progress(self, calibration_id: UUID) -> Iterator[CalibrationProgressed]:
        """How far it is, and again with each news, to its end."""
        with self._open("GET", f"/v1/calibrations/{calibration_id}/events", None, None) as response:
            for event in _events(response):
                yield CalibrationProgressed.model_validate(event)

    def ready(self) -> bool:
        """Whether ingress answers and says that it is ready."""
        try:
            self._call("GET", "/readyz", timeout_s=2)
        except CommandFailed:
            return False
        return True

    def changes(self, deployment_id: UUID) -> Iterator[Deployment]:
        """The deployment now, and again at each change, until its last state."""
        with self._open("GET", f"/v1/deployments/{deployment_id}/events", None, None) as response:
            for event in _events(response):
                yield Deployment.model_validate(event)

    def complete(self, path: str, body: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """The events of a streamed completion; path is /v1/chat/completions or /v1/completions."""
        with self._open("POST", path, {**body, "stream": True}, None) as response:
            for event in _events(response):
                if "error" in event:
                    raise _failure(event["error"])
                yield event

    def exchange(self, path: str, body: Mapping[str, object]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer, whatever they are. Waits as long as it takes. Raises CommandFailed."""
        with self._connected("POST", path, body, None) as response:
            text = response.read()
        answer: dict[str, Any] = _parsed(response.status, text)
        return response.status, answer

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        query: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        with self._open(method, path, body, query, timeout_s) as response:
            text = response.read()
        return _parsed(response.status, text) if text else {}

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


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each `data:` line of a server-sent event stream, to [DONE]."""
    for line in response:
        if line.startswith(b"data:"):
            text = line[5:].strip()
            if text == b"[DONE]":
                return
            yield json.loads(text)


def _refusal(status: int, body: bytes) -> CommandFailed:
    try:
        return _failure(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return _no_cluster(status)


def _parsed(status: int, body: bytes) -> Any:
    """Raises CommandFailed: it is no JSON."""
    try:
        return json.loads(body)
    except ValueError as error:
        raise _no_cluster(status) from error


def _no_cluster(status: int) -> CommandFailed:
    told = f"what answers there (HTTP {status}) is no cluster; name one with --url or MAVERIQ_URL"
    return CommandFailed(told, code="no_cluster")


def _failure(error: Mapping[str, Any]) -> CommandFailed:
    """OpenAI's error shape, as ingress gives it."""
    code = str(error.get("code") or error.get("type"))
    return CommandFailed(str(error["message"]), field=str(error.get("param") or ""), code=code)
