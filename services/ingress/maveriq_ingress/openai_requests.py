"""OpenAI's request bodies as ours. Pure: parsed JSON in, Asked or HttpError out.

Every field that OpenAI documents is declared. One that would change the answer and that no engine of ours
honours is refused unless its value asks for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import ConfigDict, Field

from maveriq.contracts import MAX_TOKENS, ChatMessage, DoorValue, Fault, Priority, Sampling
from maveriq_ingress.errors import HttpError, refused

_PRIORITIES: Mapping[str | None, Priority] = {"priority": Priority.HIGH, "flex": Priority.LOW}  # OpenAI's tiers
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, of /v1/completions alone


@dataclass(frozen=True, slots=True)
class Asked:
    """What either endpoint asks for, in our words."""

    model: str
    prompt: str | tuple[int, ...] | None
    messages: tuple[ChatMessage, ...] | None
    sampling: Sampling
    priority: Priority
    stream: bool
    include_usage: bool


class StreamOptions(DoorValue):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers on token lengths: never added here


class _Body(DoorValue):
    """What both endpoints know."""

    model_config = ConfigDict(strict=True)

    model: str = Field(min_length=1, max_length=200)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: object = None
    max_tokens: int | None = Field(default=None, gt=0, le=MAX_TOKENS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: Literal["auto", "default", "priority", "flex"] | None = None
    ignore_eos: bool = False  # ours, not OpenAI's: for measuring
    n: object = None
    logit_bias: object = None
    presence_penalty: object = None
    frequency_penalty: object = None
    user: object = None  # from here on: changes no answer
    metadata: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_retention: object = None

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> Sampling:
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=_stop(self.stop),
            logprobs=logprobs,
            ignore_eos=self.ignore_eos,
        )

    @property
    def priority(self) -> Priority:
        return _PRIORITIES.get(self.service_tier, Priority.NORMAL)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatTurn(DoorValue):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: object = None
    tool_call_id: object = None  # names the call that the content answers; no template of ours reads it
    name: object = None
    refusal: object = None
    annotations: object = None
    audio: object = None
    function_call: object = None
    tool_calls: object = None


class ChatBody(_Body):
    messages: tuple[ChatTurn, ...] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, gt=0, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: object = None
    tools: object = None
    tool_choice: object = None
    functions: object = None
    function_call: object = None
    modalities: object = None
    audio: object = None
    prediction: object = None
    reasoning_effort: object = None
    verbosity: object = None
    web_search_options: object = None
    moderation: object = None
    store: object = None
    parallel_tool_calls: object = None  # changes nothing without tools


class CompletionBody(_Body):
    prompt: object
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: object = None
    suffix: object = None
    best_of: object = None


_ONE = "send one request for each answer"
_NO_TOOLS = "leave it out; describe the tools in the prompt"
_NO_PENALTY = "leave it out, or send 0"
_LEAVE_OUT = "leave it out"

# field -> the values that ask for nothing, and the remedy for any other
_UNSUPPORTED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "n": ((1,), _ONE),
    "best_of": ((1,), _ONE),
    "logit_bias": (({},), _LEAVE_OUT),
    "presence_penalty": ((0,), _NO_PENALTY),
    "frequency_penalty": ((0,), _NO_PENALTY),
    "response_format": (({"type": "text"},), "leave it out; describe the format in the prompt"),
    "tools": (([],), _NO_TOOLS),
    "tool_choice": (("none", "auto"), _NO_TOOLS),
    "functions": (([],), _NO_TOOLS),
    "function_call": (("none", "auto"), _NO_TOOLS),
    "tool_calls": (([],), "put what was called into the content"),
    "modalities": ((["text"],), 'leave it out, or send ["text"]'),
    "audio": ((), _LEAVE_OUT),
    "prediction": ((), _LEAVE_OUT),
    "reasoning_effort": (("none",), _LEAVE_OUT),
    "verbosity": (("medium",), _LEAVE_OUT),
    "web_search_options": ((), _LEAVE_OUT),
    "moderation": ((), _LEAVE_OUT),
    "store": ((False,), "leave it out; nothing is stored here"),
    "echo": ((False,), "leave it out; the prompt is yours already"),
    "suffix": (("",), "leave it out; only continuations are generated"),
    "name": ((), "put the name into the content"),
    "refusal": ((), _LEAVE_OUT),
    "annotations": (([],), _LEAVE_OUT),
}


def of_chat(body: ChatBody) -> Asked:
    """Raises HttpError (400) naming the field."""
    _check_supported(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise _refused("top_logprobs", "given without logprobs", "send logprobs: true with it")
    both = body.max_tokens is not None and body.max_completion_tokens is not None
    if both and body.max_tokens != body.max_completion_tokens:
        raise _refused("max_tokens", "differs from max_completion_tokens", "send max_completion_tokens alone")
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return Asked(
        model=body.model,
        prompt=None,
        messages=tuple(_message(turn, f"messages.{at}") for at, turn in enumerate(body.messages)),
        sampling=body.sampling(max_tokens, (body.top_logprobs or 0) if body.logprobs else None),
        priority=body.priority,
        stream=bool(body.stream),
        include_usage=body.include_usage,
    )


def of_completion(body: CompletionBody) -> Asked:
    """Raises HttpError (400) naming the field."""
    _check_supported(body)
    return Asked(
        model=body.model,
        prompt=_prompt(body.prompt),
        messages=None,
        sampling=body.sampling(body.max_tokens or DEFAULT_COMPLETION_TOKENS, body.logprobs),
        priority=body.priority,
        stream=bool(body.stream),
        include_usage=body.include_usage,
    )


def _check_supported(part: ChatBody | CompletionBody | ChatTurn, at: str = "") -> None:
    for name in part.model_fields_set & _UNSUPPORTED.keys():
        value: object = getattr(part, name)
        neutral, remedy = _UNSUPPORTED[name]
        if value is not None and not any(value == one and type(value) is type(one) for one in _with_floats(neutral)):
            raise _refused(f"{at}{name}", "not supported here", remedy)


def _with_floats(values: tuple[object, ...]) -> tuple[object, ...]:
    """0 may be written 0.0; False is neither."""
    return (*values, *(float(one) for one in values if type(one) is int))


def _message(turn: ChatTurn, at: str) -> ChatMessage:
    _check_supported(turn, f"{at}.")
    return ChatMessage(role=turn.role, content=_text(turn.content, f"{at}.content"))


def _text(content: object, field: str) -> str:
    """A message's content: a string, or text parts, joined by line ends as vLLM joins them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _refused(field, "neither a string nor a list of text parts", "send a string")
    texts: list[str] = []
    for at, part in enumerate(cast(list[object], content)):
        fields = cast(dict[str, object], part) if isinstance(part, dict) else {}
        kind, text = fields.get("type"), fields.get("text")
        if kind != "text":
            raise _refused(f"{field}.{at}.type", f"{kind!r} is not understood here", 'send parts of type "text" only')
        if not isinstance(text, str):
            raise _refused(f"{field}.{at}.text", "not a string", "send the part's text as a string")
        texts.append(text)
    return "\n".join(texts)


def _prompt(prompt: object) -> str | tuple[int, ...]:
    """One prompt: text, token ids, or a list that holds one of these."""
    if isinstance(prompt, list):
        inner = cast(list[object], prompt)
        only = inner[0] if len(inner) == 1 else None
        if only is not None and type(only) is not int:
            return _prompt(only)
        if any(isinstance(part, str | list) for part in inner):
            raise _refused("prompt", f"holds {len(inner)} prompts", "send one request for each prompt")
        if inner and all(type(part) is int and part >= 0 for part in inner):
            return tuple(cast(list[int], inner))
    elif isinstance(prompt, str) and prompt:
        return prompt
    raise _refused("prompt", "neither text nor token ids, or empty", "send a string or a list of token ids")


def _stop(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    wanted = cast(list[object], stop) if isinstance(stop, list) else [stop]
    if len(wanted) > 16 or not all(isinstance(one, str) and one for one in wanted):
        raise _refused("stop", "not up to 16 strings, none empty", "send a string or a list of strings")
    return tuple(cast(list[str], wanted))


def _refused(field: str, problem: str, remedy: str) -> HttpError:
    return refused(Fault(field=field, problem=problem, remedy=remedy))
