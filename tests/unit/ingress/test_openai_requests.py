"""OpenAI's fields: honoured, harmless, or refused by name with a remedy."""

from typing import Any

import pytest
from pydantic_core import to_json

from maveriq.contracts import ChatMessage, Priority
from maveriq_ingress.bodies import parse
from maveriq_ingress.errors import HttpError
from maveriq_ingress.openai_requests import Asked, ChatBody, CompletionBody, of_chat, of_completion

USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> Asked:
    return of_chat(parse(to_json({"model": "m", "messages": [USER]} | fields), ChatBody))


def completion(**fields: Any) -> Asked:
    return of_completion(parse(to_json({"model": "m", "prompt": "hi"} | fields), CompletionBody))


def test_the_plainest_chat_takes_openais_defaults() -> None:
    asked = chat()
    assert asked.messages == (ChatMessage(role="user", content="hi"),)
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.max_tokens) == (1.0, 1.0, None)
    assert (asked.stream, asked.include_usage, asked.priority) == (False, False, Priority.NORMAL)


def test_every_honoured_field_arrives() -> None:
    asked = chat(
        temperature=0, top_p=0.5, seed=3, stop="x", max_completion_tokens=9, logprobs=True, top_logprobs=4,
        stream=True, stream_options={"include_usage": True}, service_tier="priority", ignore_eos=True,
    )  # fmt: skip
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (0.0, 0.5, 3, ("x",))
    assert (sampling.max_tokens, sampling.logprobs, sampling.ignore_eos) == (9, 4, True)
    assert (asked.stream, asked.include_usage, asked.priority) == (True, True, Priority.HIGH)


@pytest.mark.parametrize(
    ("tier", "priority"),
    [("priority", Priority.HIGH), ("default", Priority.NORMAL), ("auto", Priority.NORMAL), ("flex", Priority.LOW)],
)
def test_a_service_tier_is_a_priority(tier: str, priority: Priority) -> None:
    assert chat(service_tier=tier).priority is priority


def test_logprobs_without_alternatives_ask_for_the_chosen_token_alone() -> None:
    assert chat(logprobs=True).sampling.logprobs == 0
    assert completion(logprobs=0).sampling.logprobs == 0
    assert chat(logprobs=False).sampling.logprobs is None


def test_a_completion_is_sixteen_tokens_long_unless_it_says_otherwise() -> None:
    assert completion().sampling.max_tokens == 16
    assert completion(max_tokens=3).sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("prompt", "read"), [("a", "a"), (["a"], "a"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2)), ([7], (7,))]
)
def test_a_prompt_is_text_or_token_ids_alone_or_in_a_list_of_one(prompt: object, read: object) -> None:
    assert completion(prompt=prompt).prompt == read


@pytest.mark.parametrize("prompt", ["", [], ["a", "b"], [[1], [2]], [1, "a"], [1.5], [-1], [True], None, 5, {}])
def test_any_other_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(HttpError) as refused:
        completion(prompt=prompt)
    assert (refused.value.status, refused.value.param) == (400, "prompt")


@pytest.mark.parametrize(("stop", "read"), [("x", ("x",)), (["x", "y"], ("x", "y")), (None, ()), ([], ())])
def test_stop_is_a_string_or_a_list(stop: object, read: object) -> None:
    assert chat(stop=stop).sampling.stop == read


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat(messages=[{"role": "user", "content": parts}])
    assert asked.messages == (ChatMessage(role="user", content="a\nb"),)


def test_an_assistants_answer_can_be_sent_back_as_it_came() -> None:
    echoed = {
        "role": "assistant", "content": "yes", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    assert chat(messages=[USER, echoed, USER]).messages[1].content == "yes"  # type: ignore[index]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": 5}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**70}, "seed"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"stream": "yes"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages.1.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bob"}]}, "messages.0.name"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_with_a_remedy(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(HttpError) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.faults[0].remedy


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "safety_identifier": "x", "prompt_cache_key": "k"},
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "auto"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "parallel_tool_calls": True, "n": None},
        {"stream_options": {"include_usage": False, "include_obfuscation": True}, "service_tier": "auto"},
    ],
)
def test_what_changes_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


@pytest.mark.parametrize("fields", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"n": 3}, {"logprobs": 21}])
def test_what_only_completions_know_is_refused_there_too(fields: dict[str, Any]) -> None:
    with pytest.raises(HttpError) as refused:
        completion(**fields)
    assert refused.value.param == next(iter(fields))


def test_an_unknown_field_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(HttpError) as refused:
        chat(temprature=0.5)
    assert refused.value.param == "temprature"
    assert "did you mean temperature?" in refused.value.message
