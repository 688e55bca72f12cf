"""Exports the contracts: AsyncAPI 3.0 for people, JSON Schemas for other languages.

`python -m maveriq.asyncapi DIRECTORY` writes asyncapi.json and schemas/<topic>.json there; `make schemas` runs it.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from maveriq.contracts import ChunksProduced, Message, MessageRefused, RequestSubmitted
from maveriq.topology import EXCHANGE, MESSAGES, PRODUCER_HEARS, PRODUCER_SENDS, SERVICES

# Messages that do not travel through the topic exchange but straight to a queue by its name.
DIRECT: dict[type[Message], str] = {
    RequestSubmitted: "requests.{deployment_id}.{priority}",
    ChunksProduced: "{reply_to}",
    MessageRefused: "{reply_to}",
}
PARAMETERS = {
    "node": "Node whose worker the message is for.",
    "deployment_id": "UUID of the deployment.",
    "priority": "high, normal or low.",
    "reply_to": "The requester's own queue: AMQP property reply_to of what it sent.",
}


def document() -> dict[str, Any]:
    """The AsyncAPI document of the whole system: one channel per topic, one operation per sender or receiver."""
    refs, schemas = models_json_schema(
        [(message, "validation") for message in MESSAGES.values()], ref_template="#/components/schemas/{model}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "MaverIQ",
            "version": version("maveriq"),
            "description": "Intent-based LLM serving. Bodies are JSON; message_id, correlation_id (the deployment), "
            "type (the topic), reply_to and expiration are AMQP properties; traceparent and tracestate (W3C Trace "
            "Context) are AMQP headers.",
        },
        "defaultContentType": "application/json",
        "channels": {topic: _channel(message) for topic, message in MESSAGES.items()},
        "operations": _operations(),
        "components": {
            "messages": {
                message.__name__: {
                    "name": message.topic,
                    "summary": (message.__doc__ or "").strip(),
                    "payload": refs[message, "validation"],
                }
                for message in MESSAGES.values()
            },
            "schemas": schemas["$defs"],
        },
    }


def _operations() -> dict[str, Any]:
    sides: list[tuple[str, str, tuple[type[Message], ...]]] = [
        ("producer", "send", PRODUCER_SENDS),
        ("producer", "receive", PRODUCER_HEARS),
    ]
    for service in SERVICES:
        sides += [(service.name, "receive", service.consumes), (service.name, "send", service.emits)]
    return {
        f"{name}.{action}.{message.topic}": {
            "action": action,
            "channel": {"$ref": f"#/channels/{message.topic}"},
        }
        for name, action, messages in sides
        for message in messages
    }


def _channel(message: type[Message]) -> dict[str, Any]:
    direct = DIRECT.get(message)
    address = direct or (f"{message.topic}.{{{message.routed_by}}}" if message.routed_by else message.topic)
    exchange = {"name": "", "type": "default"} if direct else {"name": EXCHANGE, "type": "topic", "durable": True}
    channel: dict[str, Any] = {
        "address": address,
        "messages": {message.__name__: {"$ref": f"#/components/messages/{message.__name__}"}},
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange}},
    }
    parameters = {name: {"description": text} for name, text in PARAMETERS.items() if f"{{{name}}}" in address}
    return channel | ({"parameters": parameters} if parameters else {})


def files() -> dict[str, str]:
    """Every generated file: path below shared/ -> content."""

    def text(value: object) -> str:
        return json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n"

    schemas = {f"schemas/{topic}.json": text(_schema(message)) for topic, message in sorted(MESSAGES.items())}
    return {"asyncapi.json": text(document()), **schemas}


def _schema(message: type[Message]) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": message.topic,
        **message.model_json_schema(),
    }


def main(directory: Path) -> None:
    for path, text in files().items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
