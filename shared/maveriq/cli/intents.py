"""From the command line's options to an intent, and back. Pure: options in, intent out."""

import json
import shlex
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from maveriq.cli.api import CommandFailed
from maveriq.contracts import Intent, faults

T = TypeVar("T", bound=BaseModel)

OPTIONS = {
    "objective": "--objective",
    "slo.percentile": "--percentile",
    "slo.ttft_ms": "--ttft-ms",
    "slo.tpot_ms": "--tpot-ms",
    "slo.e2e_ms": "--e2e-ms",
    "workload.input_tokens": "--input-tokens",
    "workload.output_tokens": "--output-tokens",
    "workload.request_rate_per_s": "--rate",
    "workload.concurrency": "--concurrency",
    "workload.context_tokens": "--context-tokens",
    "workload.histogram": "--histogram",
    "min_accuracy": "--min-accuracy",
    "allow_unmeasured_accuracy": "--allow-unmeasured-accuracy",
    "gpu_types": "--gpu-type",
    "precisions": "--precision",
    "max_price_per_hour": "--max-price",
    "max_gpus": "--max-gpus",
    "replicas": "--replicas",
    "strategy": "--strategy",
    "hybrid_threshold": "--hybrid-threshold",
    "tenant": "--tenant",
    "priority": "--priority",
    "max_wait_s": "--max-wait-s",
}
"""Field of the intent: the option that sets it."""


def build_intent(model: str | None, options: Mapping[str, object], written: str | None) -> Intent:
    """The intent that options, on top of a written one, describe.

    Args:
        options: by field of the intent, as in OPTIONS; None is not given.
        written: JSON of an intent to start from.

    Raises:
        CommandFailed: naming the option and the remedy.
    """
    body = _parsed(written) if written is not None else {}
    if model is not None:
        body["model"] = model
    if "model" not in body:
        raise CommandFailed("name a model, or give --intent a file that does", field="MODEL", exit_code=2)
    for field, value in options.items():
        if value is None:
            continue
        *parents, last = field.split(".")
        into = body
        for parent in parents:
            into = into.setdefault(parent, {})
        into[last] = value
    return checked(Intent, body, {**OPTIONS, "model": "MODEL", "workload": "--context-tokens"})


def as_command(command: str, intent: Intent, url: str | None = None) -> str:
    """What to paste into a shell to ask for this intent: `maveriq plan tiny --ttft-ms 900`.

    Args:
        url: of the cluster, where it has to be named.
    """
    words = ["maveriq", command, intent.model]
    asked = intent.model_dump(mode="json", exclude_defaults=True)
    for field, option in OPTIONS.items():
        section, _, last = field.rpartition(".")
        value: Any = (asked.get(section, {}) if section else asked).get(last)
        given = cast(list[object], value) if isinstance(value, list) else [value]
        words += [word for each in given if each is not None for word in _spelled(option, each)]
    return shlex.join([*words, *(["--url", url] if url else [])])


def _spelled(option: str, value: object) -> list[str]:
    if value is True:
        return [option]
    if isinstance(value, dict):
        return [option, "FILE"]  # theirs: more than fits on a line
    return [option, f"{value:.12g}" if isinstance(value, float) else str(value)]


def checked(wanted: type[T], body: object, options: Mapping[str, str]) -> T:
    """`body` as `wanted`; raises CommandFailed naming the option at fault."""
    try:
        return wanted.model_validate(body)
    except ValidationError as error:
        first = faults(error, wanted)[0]
        name, inner = _option_of(first.field, options)
        words = f"{inner}: {first.problem}" if inner and not inner.isdecimal() else first.problem
        raise CommandFailed(f"{words}; {first.remedy}", field=name, code="invalid", exit_code=2) from error


def _option_of(field: str, options: Mapping[str, str]) -> tuple[str, str]:
    """The option that says a field, or what it is in, and the way from there; the field itself where none does."""
    outer = field
    while outer and outer not in options:
        outer = outer.rpartition(".")[0]
    return (options[outer], field.removeprefix(outer).lstrip(".")) if outer else (field, "")


def _parsed(written: str) -> dict[str, Any]:
    try:
        body: Any = json.loads(written)
    except ValueError as error:
        raise CommandFailed(f"no JSON: {error}", field="--intent", exit_code=2) from error
    if not isinstance(body, dict):
        raise CommandFailed('must hold one JSON object, e.g. {"model": "tiny"}', field="--intent", exit_code=2)
    return cast(dict[str, Any], body)
