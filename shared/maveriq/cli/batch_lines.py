"""A batch's requests and answers as lines of OpenAI's Batch API. Pure: text in, requests out, and back."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from maveriq.cli.api import CommandFailed

PATHS = ("/v1/chat/completions", "/v1/completions")
FIELDS = frozenset({"custom_id", "method", "url", "body"})


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One line of the input."""

    custom_id: str
    path: str
    body: Mapping[str, object]

    @property
    def model(self) -> str:
        return cast(str, self.body["model"])


def read_requests(lines: Iterable[str], target: str | None = None) -> list[BatchRequest]:
    """Args:
        target: takes the place of the models that the lines name.

    Raises:
        CommandFailed: naming the line and the field; nothing of a file with a fault is to be sent.
    """
    found: dict[str, BatchRequest] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        request = _request(f"line {number}", line, target)
        if request.custom_id in found:
            raise _fault(f"line {number}", "custom_id", f"{request.custom_id!r} was there before; give each its own")
        found[request.custom_id] = request
    if not found:
        raise CommandFailed("has no requests; write one JSON object a line", field="FILE", exit_code=2)
    return list(found.values())


def _request(where: str, line: str, target: str | None) -> BatchRequest:
    try:
        told: Any = json.loads(line)
    except ValueError as error:
        raise _fault(where, "", f"no JSON: {error}") from error
    if not isinstance(told, dict):
        raise _fault(where, "", "must be one JSON object")
    fields = cast(dict[str, Any], told)
    if unknown := sorted(fields.keys() - FIELDS):
        raise _fault(where, unknown[0], f"unknown; known fields: {', '.join(sorted(FIELDS))}")
    custom_id, path, body = fields.get("custom_id"), fields.get("url"), fields.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise _fault(where, "custom_id", "must be a text that no other line has")
    if fields.get("method") != "POST":
        raise _fault(where, "method", 'must be "POST"')
    if path not in PATHS:
        raise _fault(where, "url", f"must be {' or '.join(PATHS)}")
    if not isinstance(body, dict):
        raise _fault(where, "body", "must be a JSON object: the request")
    asked = {**cast(dict[str, object], body), **({} if target is None else {"model": target})}
    if not isinstance(asked.get("model"), str) or not asked["model"]:
        raise _fault(where, "body.model", "must name a deployed model; or give --target")
    if asked.get("stream"):
        raise _fault(where, "body.stream", "a batch does not stream; leave it out")
    return BatchRequest(custom_id, cast(str, path), asked)


def _fault(where: str, field: str, problem: str) -> CommandFailed:
    return CommandFailed(
        f"{where}: {f'{field}: ' if field else ''}{problem}", field="FILE", code="invalid", exit_code=2
    )


def answer_line(request: BatchRequest, status: int, body: Mapping[str, Any]) -> str:
    """What came back for a request, of whatever status."""
    response = {"status_code": status, "request_id": str(body.get("id", "")), "body": body}
    return _line(request, response, None)


def failure_line(request: BatchRequest, code: str, message: str) -> str:
    """Nothing came back."""
    return _line(request, None, {"code": code, "message": message})


def first_reason(failed: str) -> str:
    """Of the first line of what failed: its id and why."""
    told: dict[str, Any] = json.loads(failed.split("\n", 1)[0])
    error: dict[str, Any] = told["error"] or told["response"]["body"].get("error") or {}
    return f"{told['custom_id']!r} because: {error.get('message', 'it was not said')}"


def _line(request: BatchRequest, response: object, error: object) -> str:
    line = {
        "id": f"batch_req_{request.custom_id}",
        "custom_id": request.custom_id,
        "response": response,
        "error": error,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def answered(text: str) -> tuple[Collection[str], int]:
    """The custom ids that an output file has answers for, and how many of its characters are whole lines.

    A last line without its end was cut off by a kill, and does not count.

    Raises:
        CommandFailed: it is no output of a batch.
    """
    whole = text.rfind("\n") + 1
    ids: set[str] = set()
    for number, line in enumerate(text[:whole].split("\n")[:-1], start=1):
        try:
            told = json.loads(line)
            custom_id, _ = told["custom_id"], told["response"]  # a line of the input has no response
            ids.add(str(custom_id))
        except (ValueError, KeyError, TypeError) as error:
            problem = f"line {number} is no answer of a batch; name another file"
            raise CommandFailed(problem, field="--output", exit_code=2) from error
    return ids, whole
