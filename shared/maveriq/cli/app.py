"""The commands: each reads its options, calls one function beside this file, and ends with one line on an error."""

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from maveriq.cli import options as o
from maveriq.cli.accuracy import accuracy
from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.asking import takes_intent
from maveriq.cli.batching import run_batch
from maveriq.cli.calibrating import calibrate as calibrate_and_follow
from maveriq.cli.calibrating import show_calibrations
from maveriq.cli.chatting import chat, infer
from maveriq.cli.defragging import defrag
from maveriq.cli.deploying import deploy_and_wait
from maveriq.cli.gpu_watch import show_gpus, watch_gpus
from maveriq.cli.planning import show_plan
from maveriq.cli.provisioning import provision
from maveriq.cli.quantizing import quantize
from maveriq.cli.registering import build_model
from maveriq.cli.watching import release, show_deployments, show_models
from maveriq.contracts import Intent, Precision
from maveriq.settings import BadSetting

app = typer.Typer(
    name="maveriq",
    help="Say what a model must do; MaverIQ finds the GPUs, the parallelism and the precision.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)


def run() -> None:
    """The process: 0 done, 1 not done, 2 asked wrongly; an error is one line, or JSON with --json."""
    in_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=not in_json)  # standing alone it tells what was asked wrongly itself, in a frame
        sys.exit(code or 0)
    except CommandFailed as failed:
        _complain(str(failed), failed.field, failed.code, in_json=in_json)
        sys.exit(failed.exit_code)
    except typer.TyperException as wrong:
        _complain(wrong.format_message(), "", "usage", in_json=in_json)
        sys.exit(wrong.exit_code)
    except BadSetting as error:
        _complain(str(error), "", "setting", in_json=in_json)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left: nothing to say, and nobody to say it to
        sys.exit(0)


@app.command()
def up(
    devices: Annotated[
        str | None, typer.Option(help='"nvml", or shares of CPU memory: "cpu:0=300MiB,cpu:1=220MiB".')
    ] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port of ingress.")] = None,
    host: Annotated[str | None, typer.Option(help="HTTP address of ingress.")] = None,
    amqp: Annotated[
        str | None, typer.Option("--amqp", envvar="MAVERIQ_AMQP_URL", help="RabbitMQ; embedded by default.")
    ] = None,
    redis: Annotated[
        str | None, typer.Option("--redis", envvar="MAVERIQ_REDIS_URL", help="Redis; embedded by default.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help='"torch" or "trtllm".')] = None,
    estimator: Annotated[
        str | None, typer.Option(help='The planner\'s: "law", "maveriq" (as published) or "aiconfigurator".')
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run this service alone; may be repeated.")] = None,
    json: o.Json = False,
) -> None:
    """Run the cluster in this process, until Ctrl-C."""
    from maveriq.cli.up import run_up

    given = {
        "MAVERIQ_DEVICES": devices,
        "MAVERIQ_HTTP_PORT": None if port is None else str(port),
        "MAVERIQ_HTTP_HOST": host,
        "MAVERIQ_AMQP_URL": amqp,
        "MAVERIQ_REDIS_URL": redis,
        "MAVERIQ_ENGINE": engine,
        "MAVERIQ_ESTIMATOR": estimator,
    }
    run_up(
        None if json else out, {name: value for name, value in given.items() if value is not None}, tuple(only or ())
    )


@app.command()
def demo() -> None:
    """From an intent to streamed tokens on this machine, in about two minutes."""
    from maveriq.cli.demo import run_demo

    run_demo(out)


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="What intents will call it.", metavar="NAME")],
    source: Annotated[
        str, typer.Argument(help="Hugging Face id, folder with config.json, or .gguf file.", metavar="SOURCE")
    ],
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help=r"\[name:]precision\[+kv-precision]\[=accuracy]\[@source], "  # brackets would be markup
            "e.g. int8=0.99, pruned:bf16=0.97@/models/p; accuracy is relative to full precision."
        ),
    ] = None,
    from_lm_eval: Annotated[
        list[str] | None,
        typer.Option(help="VARIANT=results.json of lm-evaluation-harness; one of them full precision's. Repeatable."),
    ] = None,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Make a model known to the cluster."""
    model = build_model(name, source, variant or [], from_lm_eval or [])
    Api(url).register(model)
    if json:
        print(model.model_dump_json())
    else:
        variants = ", ".join(each.label for each in model.variants)
        out.print(f"[green]✓[/] {model.name} is registered ({variants}); next: maveriq deploy {model.name}")


@app.command()
def models(url: o.Url = o.DEFAULT_URL, json: o.Json = False) -> None:
    """List the models that intents may name."""
    show_models(Api(url), None if json else out)


app.command()(accuracy)


@app.command()
@takes_intent
def deploy(intent: Intent, url: o.Url = o.DEFAULT_URL, json: o.Json = False) -> None:
    """Serve a model as the options ask, and wait until it is served."""
    deploy_and_wait(Api(url), intent, None if json else out)


@app.command()
@takes_intent
def plan(
    intent: Intent,
    explain: Annotated[bool, typer.Option("--explain", help="Say why: the winner, the front, each that lost.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the front into this .png, .svg or .pdf.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows of each kind.")] = 10,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Show what would be done, and why each other configuration lost; start nothing."""
    show_plan(Api(url), intent, None if json else out, top=top, explain=explain, plot=plot)


app.command()(provision)
app.command()(quantize)
app.command()(chat)
app.command()(infer)


@app.command()
def batch(
    file: Annotated[
        Path, typer.Argument(help="Requests, a line each, as OpenAI's Batch API takes them.", metavar="FILE")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Answers; by default FILE's, .out.jsonl.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Model name or deployment id, in place of those that the lines name.")
    ] = None,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Answer a file of requests, after everybody else's; again, only what has no answer yet."""
    run_batch(Api(url), file, output, target, None if json else out)


@app.command()
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that have ended.")] = False,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """List deployments."""
    show_deployments(Api(url), everything, None if json else out)


@app.command()
def gpus(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until Ctrl-C; with --json a line a change.")] = False,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Draw the GPUs: who holds what, which fragments are free, and who waits for memory."""
    (watch_gpus if watch else show_gpus)(Api(url), None if json else out)


app.command()(defrag)


@app.command()
def calibrate(
    node: Annotated[str | None, typer.Option(help="A node, or a rig such as torch-nvidia-l4. All by default.")] = None,
    gpu_type: Annotated[str | None, typer.Option(help="As `maveriq gpus` shows it. All by default.")] = None,
    budget_s: Annotated[float | None, typer.Option(min=1, max=86_400, help="GPU-seconds of each GPU type.")] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="int8 or int4, beside full precisions. Repeatable.")
    ] = None,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Measure what GPU types cost, so that any model can be predicted there; what was measured stays measured."""
    calibrate_and_follow(Api(url), node, gpu_type, budget_s, precision or (), None if json else out)


@app.command()
def calibrations(url: o.Url = o.DEFAULT_URL, json: o.Json = False) -> None:
    """List what is known of each GPU type, and how far it is to be trusted."""
    show_calibrations(Api(url), None if json else out)


@app.command()
def rm(
    target: o.Target,
    wait: Annotated[bool, typer.Option(help="Wait until the memory is free again.")] = True,
    url: o.Url = o.DEFAULT_URL,
    json: o.Json = False,
) -> None:
    """Release a deployment: what is queued is answered first."""
    release(Api(url), target, wait, None if json else out)


def _complain(message: str, field: str, code: str, *, in_json: bool) -> None:
    if in_json:
        print(json_text.dumps({"error": {"message": message, "param": field, "code": code}}))
        return
    line = Text("maveriq: ", style="bold red").append(message, style="default")
    Console(stderr=True, highlight=False, soft_wrap=True).print(line)
