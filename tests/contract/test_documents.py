"""The committed AsyncAPI document and JSON Schemas are those of the classes, and hold to the official schema.

`asyncapi-3.0.0.schema.json` is AsyncAPI's own (asyncapi/spec-json-schemas 6.11.1, Apache-2.0), without whitespace.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from maveriq.asyncapi import document, files
from maveriq.contracts import Message
from maveriq.topology import MESSAGES, PRODUCER_SENDS, SERVICES

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"


def official() -> Draft7Validator:
    return Draft7Validator(json.loads((HERE / "asyncapi-3.0.0.schema.json").read_text()))


def test_the_committed_documents_are_current() -> None:
    for path, text in files().items():
        assert (SHARED / path).read_text() == text, f"{path} is stale: run `make schemas`"


def test_nothing_else_lies_among_the_schemas() -> None:
    assert {f"schemas/{path.name}" for path in (SHARED / "schemas").iterdir()} == set(files()) - {"asyncapi.json"}


def test_the_document_holds_to_asyncapi_3() -> None:
    assert [error.message for error in official().iter_errors(document())] == []


def test_the_official_schema_would_notice_a_mistake() -> None:
    broken: dict[str, Any] = document()
    broken["operations"]["producer.send.intent.submitted.v1"]["action"] = "shout"
    assert list(official().iter_errors(broken))


@pytest.mark.parametrize("topic", sorted(MESSAGES))
def test_every_schema_is_a_valid_json_schema(topic: str) -> None:
    Draft202012Validator.check_schema(json.loads((SHARED / "schemas" / f"{topic}.json").read_text()))


def test_every_topic_is_a_noun_a_participle_and_a_version() -> None:
    for topic, message in MESSAGES.items():
        assert len(topic.split(".")) == 3
        assert topic.split(".")[2] == "v1"
        assert issubclass(message, Message)
        assert message.__doc__


def test_what_one_service_consumes_another_side_sends() -> None:
    sent = {message for service in SERVICES for message in service.emits} | set(PRODUCER_SENDS)
    for service in SERVICES:
        assert set(service.consumes) <= sent, service.name
