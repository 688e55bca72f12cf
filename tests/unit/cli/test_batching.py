"""A batch is checked before it is sent, answered after everybody else, and taken up again where it ended."""

import json
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from maveriq.cli import batching
from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.batch_lines import answered, read_requests
from maveriq.contracts import State
from tests.unit.cli.conftest import Called, ScriptedIngress
from tests.unit.cli.records import deployment

Call = Callable[..., Called]
CHAT = "/v1/chat/completions"


def line(custom_id: str, **changed: object) -> str:
    body = {"model": "tiny", "messages": [{"role": "user", "content": custom_id}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changed})


@pytest.fixture
def file(tmp_path: Path, ingress: ScriptedIngress) -> Path:
    """Three requests for a deployment that answers."""
    ingress.answer("GET /v1/deployments", {"data": [deployment(State.READY).model_dump(mode="json")]})
    answer: dict[str, object] = {"id": "chatcmpl-1", "usage": {"prompt_tokens": 3, "completion_tokens": 7}}
    ingress.answer(f"POST {CHAT}", answer)
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line(f"r{number}") for number in range(3)) + "\n")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in path.read_text().splitlines()]


def sent(ingress: ScriptedIngress) -> list[dict[str, Any]]:
    return [body for request, body in ingress.asked if request == f"POST {CHAT}"]


def test_every_request_is_answered_in_openai_s_format_at_low_priority(
    file: Path, ingress: ScriptedIngress, call: Call
) -> None:
    called = call("batch", str(file), "--json")
    assert (called.code, json.loads(called.out)["answered"], json.loads(called.out)["output_tokens"]) == (0, 3, 21)
    assert {body["service_tier"] for body in sent(ingress)} == {"flex"}
    told = lines(file.with_suffix(".out.jsonl"))
    assert {each["custom_id"] for each in told} == {"r0", "r1", "r2"}
    assert all(each["error"] is None and each["response"]["status_code"] == 200 for each in told)
    assert all(each["response"]["body"]["usage"]["completion_tokens"] == 7 for each in told)


def test_the_same_command_again_answers_only_what_has_no_answer_yet(
    file: Path, ingress: ScriptedIngress, call: Call
) -> None:
    output = file.with_suffix(".out.jsonl")
    assert call("batch", str(file)).code == 0
    first = output.read_text().splitlines(keepends=True)
    output.write_text(first[0] + first[1][:9])  # killed while it wrote
    ingress.asked.clear()
    assert call("batch", str(file)).code == 0
    assert len(sent(ingress)) == 2
    assert sorted(each["custom_id"] for each in lines(output)) == ["r0", "r1", "r2"]
    ingress.asked.clear()
    assert (call("batch", str(file)).code, ingress.asked) == (0, [])


def test_a_refused_request_is_not_tried_again_and_told_apart(file: Path, ingress: ScriptedIngress, call: Call) -> None:
    refusal = {"error": {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "x"}}
    ingress.answer(f"POST {CHAT}", refusal, 400)
    called = call("batch", str(file))
    assert called.code == 1 and "3 of 3 requests failed, 'r" in called.err and "because: too long; " in called.err
    assert len(sent(ingress)) == 3
    assert [each["response"]["status_code"] for each in lines(file.with_suffix(".out.errors.jsonl"))] == [400] * 3
    assert not file.with_suffix(".out.jsonl").exists()


def test_overload_is_tried_again_until_it_is_a_failure(
    file: Path, ingress: ScriptedIngress, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "RETRY_S", 0.0)
    ingress.answer(f"POST {CHAT}", {"error": {"message": "full", "code": "overloaded"}}, 503)
    assert call("batch", str(file)).code == 1
    assert len(sent(ingress)) == 3 * batching.MAX_TRIES


def test_a_batch_for_a_model_that_is_not_deployed_sends_nothing(
    file: Path, ingress: ScriptedIngress, call: Call
) -> None:
    called = call("batch", str(file), "--target", "other")
    assert called.code == 1 and "no deployment 'other'" in called.err
    assert sent(ingress) == []


def test_a_target_takes_the_place_of_the_models_named() -> None:
    assert [each.model for each in read_requests([line("a"), line("b")], "other")] == ["other", "other"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "line 1: no JSON"),
        ("[]", "line 1: must be one JSON object"),
        (line(""), "line 1: custom_id"),
        (line("a", method="GET"), "line 1: method"),
        (line("a", url="/v1/embeddings"), "line 1: url"),
        (line("a", body=[]), "line 1: body: must be a JSON object"),
        (line("a", body={"messages": []}), "line 1: body.model"),
        (line("a", body={"model": "m", "stream": True}), "line 1: body.stream"),
        (line("a", extra=1), "line 1: extra: unknown"),
        (f"{line('a')}\n\n{line('a')}", "line 3: custom_id: 'a' was there before"),
        ("", "has no requests"),
    ],
)
def test_a_fault_names_line_and_field(text: str, fault: str) -> None:
    with pytest.raises(CommandFailed, match=f"^FILE: {fault}"):
        read_requests(text.splitlines())


def test_a_file_that_is_no_output_is_not_written_to() -> None:
    with pytest.raises(CommandFailed, match="line 1 is no answer of a batch"):
        answered("hello\n")


def test_a_tier_that_a_line_names_makes_it_no_more_urgent(file: Path, ingress: ScriptedIngress, call: Call) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "service_tier": "priority"}
    file.write_text(line("a", body=body))
    assert call("batch", str(file)).code == 0
    assert [each["service_tier"] for each in sent(ingress)] == ["flex"]


def test_line_ends_within_an_answer_end_no_line(file: Path, ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer(f"POST {CHAT}", {"id": "x", "choices": [{"text": "a\u2028b\x85c\x1cd"}]})
    assert (call("batch", str(file)).code, call("batch", str(file)).code) == (0, 0)
    assert len(sent(ingress)) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-",), "--output: name a file"),
        (("{file}", "--output", "{file}"), "--output: line 1 is no answer of a batch"),
        (("{file}", "--output", "{file}.d/out.jsonl"), "--output: there is no folder"),
    ],
)
def test_where_answers_cannot_go_is_said_before_anything_is_sent(
    file: Path, ingress: ScriptedIngress, call: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
    words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", StringIO(line("a")))
    called = call("batch", *(each.replace("{file}", str(file)) for each in arguments))
    assert (called.code, sent(ingress)) == (2, [])
    assert words in called.err


class Gone(Api):
    """Answered once; now nobody is there."""

    def exchange(self, path: str, body: Mapping[str, object]) -> tuple[int, dict[str, Any]]:
        raise CommandFailed("no cluster answers", code="unreachable")

    def ready(self) -> bool:
        return False


def test_a_cluster_that_is_gone_ends_the_command_and_makes_no_request_a_failure(
    file: Path, ingress: ScriptedIngress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "RETRY_S", 0.0)
    with pytest.raises(CommandFailed, match="answers no more; what it answered is kept, and the same command goes on"):
        batching.run_batch(Gone(ingress.url), file, None, None, None)
    assert not file.with_suffix(".out.errors.jsonl").exists()


def test_a_file_with_a_byte_order_mark_is_read(file: Path, ingress: ScriptedIngress, call: Call) -> None:
    file.write_text("\ufeff" + file.read_text())
    assert (call("batch", str(file)).code, len(sent(ingress))) == (0, 3)
