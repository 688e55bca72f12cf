"""`maveriq chat` and `maveriq infer`: ask a deployment and print the answer as it comes."""

import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Annotated

import typer
from rich.console import Console

from maveriq.cli import options as o
from maveriq.cli.answering import Answer, Answering
from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.finding import find_serving
from maveriq.contracts import Priority

CHAT_TEMPERATURE = 0.7  # as chat programs of local models have it; at OpenAI's 1 small models ramble


def chat(
    target: o.Target,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this and end.")] = None,
    system: Annotated[str | None, typer.Option(help="How the model is to behave.")] = None,
    max_tokens: o.ChatTokens = None,
    temperature: o.Temperature = CHAT_TEMPERATURE,
    top_p: o.TopP = None,
    seed: o.Seed = None,
    priority: o.PriorityOption = Priority.NORMAL,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Talk to a deployment; the answer streams."""
    if json and message is None:
        raise CommandFailed("needs --message: a conversation is no JSON", field="--json", exit_code=2)
    answering = Answering(Api(url), target, _sampling(max_tokens, temperature, top_p, seed), priority)
    converse(answering, system, message, None if json else Console(highlight=False))


def infer(
    target: o.Target,
    prompt: Annotated[str, typer.Argument(help="Text to continue; '-' reads standard input.", metavar="PROMPT")],
    max_tokens: o.MaxTokens = 128,
    temperature: o.Temperature = 0.0,
    top_p: o.TopP = None,
    seed: o.Seed = None,
    priority: o.PriorityOption = Priority.NORMAL,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Continue a text, without a chat template."""
    answering = Answering(Api(url), target, _sampling(max_tokens, temperature, top_p, seed), priority)
    console = None if json else Console(highlight=False)
    asked = {"prompt": sys.stdin.read() if prompt == "-" else prompt}
    _end(answering.ask("/v1/completions", asked, _printer(console)), console)


def _sampling(max_tokens: int | None, temperature: float, top_p: float | None, seed: int | None) -> dict[str, float]:
    given = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    return {name: value for name, value in given.items() if value is not None}


def converse(answering: Answering, system: str | None, message: str | None, console: Console | None) -> None:
    """Answer one message, or many until Ctrl-D. Ctrl-C ends an answer. Raises CommandFailed."""
    said = [{"role": "system", "content": system}] if system else []
    if message is not None:
        said.append({"role": "user", "content": message})
        _end(answering.ask("/v1/chat/completions", {"messages": said}, _printer(console)), console)
        return
    assert console is not None, "a conversation has a screen"
    find_serving(answering.target, answering.api.deployments())
    with suppress(ImportError):
        import_module("readline")  # gives input() a history and line editing
    console.print(f"[dim]talking to {answering.target}; Ctrl-C ends an answer, Ctrl-D the conversation[/]")
    while (asked := _ask_person(console)) is not None:
        if asked.strip():
            said.append({"role": "user", "content": asked})
            _turn(answering, said, console)


def _turn(answering: Answering, said: list[dict[str, str]], console: Console) -> None:
    heard: list[str] = []

    def show(text: str) -> None:
        heard.append(text)
        _printer(console)(text)

    try:
        answer = answering.ask("/v1/chat/completions", {"messages": said}, show)
        console.print(f"\n[dim]{answer.figures()}[/]")
    except KeyboardInterrupt:
        console.print("\n[dim]ended by you[/]")
    except CommandFailed as failed:
        console.print(f"\n[red]{failed}[/]")
    if heard:
        said.append({"role": "assistant", "content": "".join(heard)})
    else:
        said.pop()


def _ask_person(console: Console) -> str | None:
    try:
        return console.input("[bold cyan]you ›[/] ")
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _printer(console: Console | None) -> Callable[[str], None]:
    if console is None:
        return lambda text: None
    return lambda text: console.print(text, end="", markup=False, soft_wrap=True)


def _end(answer: Answer, console: Console | None) -> None:
    if console is None:
        print(answer.as_json())
    else:
        console.print()
        Console(stderr=True, highlight=False).print(f"[dim]{answer.figures()}[/]")
