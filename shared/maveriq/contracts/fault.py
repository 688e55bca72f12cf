"""What was wrong with an input, and what to do about it: the same words over AMQP and HTTP."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar, get_args
from uuid import UUID

from pydantic import BaseModel, Field, ValidationError

from maveriq.contracts.message import Message, Value


class Fault(Value):
    """One thing wrong with an input."""

    field: str = Field(description="Dotted path of the field, e.g. intent.slo.ttft_ms; '' for the whole body.")
    problem: str
    remedy: str = Field(description="What the sender can do about it.")

    def __str__(self) -> str:
        return f"{self.field or 'body'}: {self.problem}; {self.remedy}"


class MessageRefused(Message):
    """Answer to a message that can never be handled, sent to its reply address before it is dead-lettered."""

    topic: ClassVar[str] = "message.refused.v1"

    refused_id: str = Field(description="message_id of the refused message; '' where it had none.")
    refused_topic: str = Field(description="Topic (or queue) that it was sent to.")
    deployment_id: UUID | None = None
    faults: tuple[Fault, ...] = Field(min_length=1)


class QuestionRefused(Exception):
    """A question to the planner cannot be answered; `fault` says which field is to blame and what to do."""

    def __init__(self, field: str, problem: str, remedy: str, *, code: str = "invalid") -> None:
        """
        Args:
            code: tells a wrong question (`invalid`) from one that nothing meets, for exit codes.
        """
        self.fault = Fault(field=field, problem=problem, remedy=remedy)
        self.code = code
        super().__init__(str(self.fault))


_HOLDS = "change it so that this holds"
_UUID = "send a UUID, e.g. 7d444840-9dc0-11d1-b245-5ffdce74fad2"
_REMEDIES = {
    "missing": "add it",
    "json_invalid": "send one JSON object in UTF-8",
    "model_type": "send a JSON object",
    "model_attributes_type": "send a JSON object",
    "finite_number": "send a finite number",
    "int_type": "send a whole number",
    "int_parsing": "send a whole number",
    "int_from_float": "send a whole number",
    "int_parsing_size": "send a smaller number",
    "float_type": "send a number",
    "float_parsing": "send a number",
    "bool_type": "send true or false",
    "bool_parsing": "send true or false",
    "string_type": "send a string",
    "tuple_type": "send an array",
    "uuid_parsing": _UUID,
    "uuid_type": _UUID,
    "greater_than": "send more than {gt}",
    "greater_than_equal": "send {ge} or more",
    "less_than": "send less than {lt}",
    "less_than_equal": "send {le} or less",
    "string_too_short": "send {min_length} or more characters",
    "string_too_long": "send at most {max_length} characters",
    "too_short": "send {min_length} or more",
    "too_long": "send at most {max_length}",
    "enum": "send one of {expected}",
    "literal_error": "send one of {expected}",
    "string_pattern_mismatch": "send one that matches {pattern}",
}


def faults(error: ValidationError, known: type[BaseModel], prefix: str = "") -> tuple[Fault, ...]:
    """A validation error as faults that a producer can act on.

    Args:
        error: what validating `known` raised.
        known: the class that was validated; its fields are offered in place of an unknown one.
        prefix: path of the validated object within the body, e.g. "intent".
    """
    found: list[Fault] = []
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(_within(other["loc"], item["loc"]) for other in items):
            continue  # what is wrong with its items was counted as their lack
        path = tuple(part for part in item["loc"] if not _is_type(part))
        problem = item["msg"].replace("Tuple should", "Array should")
        remedy = _REMEDIES.get(item["type"], _HOLDS).format_map(item.get("ctx", {}))
        if item["type"] == "extra_forbidden":
            problem, remedy = "unknown field", _instead_of(path, known)
        elif item["type"] == "value_error":
            inner, problem, remedy = _of_ours(problem.removeprefix("Value error, "))
            path += inner
        field = ".".join(str(part) for part in ((prefix,) if prefix else ()) + path)
        found.append(Fault(field=field, problem=problem, remedy=remedy))
    return tuple(found)


def _is_type(part: int | str) -> bool:
    """Of a field that may have several: pydantic names the one that it tried."""
    return isinstance(part, str) and (part == "str" or "[" in part)


def _of_ours(words: str) -> tuple[tuple[str, ...], str, str]:
    """Field, problem and remedy of what a validator of ours said: `[field: ]problem[; remedy]`."""
    said = re.fullmatch(r"(?:([a-z_]+(?:\.\d+)?): )?(.*?)(?:; (.*))?", words, re.DOTALL)
    assert said is not None, "each part may be left out"
    return (said[1],) if said[1] else (), said[2], said[3] or _HOLDS


def _within(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _instead_of(path: tuple[int | str, ...], known: type[BaseModel]) -> str:
    fields = _fields_at(path[:-1], known)
    close = get_close_matches(str(path[-1]), fields, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return "remove it" + (f"; known fields: {', '.join(fields)}" if fields else "")


def _fields_at(path: Iterable[int | str], known: type[BaseModel]) -> list[str]:
    at = known
    for part in path:
        if isinstance(part, int):
            continue
        field = at.model_fields.get(part)
        if field is None:
            return []
        inner = _model_in(field.annotation)
        if inner is None:
            return []
        at = inner
    return list(at.model_fields)


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        inner = _model_in(part)
        if inner is not None:
            return inner
    return None
