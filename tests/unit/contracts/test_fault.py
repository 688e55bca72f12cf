"""Every fault names the field and what to do about it."""

from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from maveriq.contracts import Intent, IntentSubmitted, Model, RequestSubmitted, faults


def of(body: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Intent.model_validate(body)
    return [str(fault) for fault in faults(caught.value, Intent, "intent")]


def test_a_misspelt_field_is_answered_with_the_one_that_was_meant() -> None:
    assert of({"model": "m", "slo": {"ttft_s": 3}}) == ["intent.slo.ttft_s: unknown field; did you mean ttft_ms?"]


def test_a_field_like_no_other_is_answered_with_those_that_there_are() -> None:
    (fault,) = of({"model": "m", "slo": {"zzz": 3}})
    assert fault == "intent.slo.zzz: unknown field; remove it; known fields: percentile, ttft_ms, tpot_ms, e2e_ms"


@pytest.mark.parametrize(
    ("body", "field", "remedy"),
    [
        ({}, "intent.model", "add it"),
        ({"model": 3}, "intent.model", "send a string"),
        ({"model": "m" * 201}, "intent.model", "send at most 200 characters"),
        ({"model": "m", "slo": {"ttft_ms": 0}}, "intent.slo.ttft_ms", "send more than 0"),
        ({"model": "m", "slo": {"ttft_ms": float("inf")}}, "intent.slo.ttft_ms", "send a finite number"),
        ({"model": "m", "workload": {"input_tokens": 1e12}}, "intent.workload.input_tokens", "10000000 or less"),
        ({"model": "m", "replicas": 0}, "intent.replicas", "send 1 or more"),
        ({"model": "m", "objective": "fast"}, "intent.objective", "'min_latency'"),
        ({"model": "m", "slo": 3}, "intent.slo", "send a JSON object"),
        ({"model": "m", "gpu_types": []}, "intent.gpu_types", "send 1 or more"),
        ({"model": "m", "precisions": ["int3"]}, "intent.precisions.0", "send one of 'fp32'"),
        (
            {"model": "m", "workload": {"input_tokens": 9, "output_tokens": 9, "context_tokens": 10}},
            "intent.workload.context_tokens",
            "must hold input_tokens + output_tokens; raise it, or leave it out",
        ),
    ],
)
def test_a_bad_value_is_answered_with_its_field_and_a_remedy(body: dict[str, Any], field: str, remedy: str) -> None:
    (fault,) = of(body)
    assert fault.startswith(f"{field}: ")
    assert remedy in fault


def test_a_field_of_several_types_is_named_as_it_is_sent() -> None:
    with pytest.raises(ValidationError) as caught:
        RequestSubmitted.model_validate_json(
            f'{{"deployment_id": "{UUID(int=0)}", "request_id": "{UUID(int=0)}", "prompt": 5}}'
        )
    assert {fault.field for fault in faults(caught.value, RequestSubmitted)} == {"prompt"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"name": "m", "source": "s", "variants": [{"precision": "fp32"}] * 2},
            "variants: fp32 is listed twice; give each a name of its own",
        ),
        (
            {"name": "m", "source": "s", "sensitivity": {"precisions": ["int8"], "layers": [[0.1], [0.1, 0.2]]}},
            "sensitivity.layers.1: has 2 numbers; give 1, one for each precision",
        ),
    ],
)
def test_what_our_own_checks_say_names_field_and_remedy_too(body: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(body)
    assert [str(fault) for fault in faults(caught.value, Model)] == [said]


def test_malformed_json_is_answered_too() -> None:
    with pytest.raises(ValidationError) as caught:
        IntentSubmitted.model_validate_json(b'{"intent": ')
    (fault,) = faults(caught.value, IntentSubmitted)
    assert (fault.field, fault.remedy) == ("", "send one JSON object in UTF-8")
