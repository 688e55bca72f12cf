"""Watching the GPUs: every change once, who waits and why, and an end with Ctrl-C."""

import io
import json
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from maveriq.cli.api import Api
from maveriq.cli.gpu_watch import watch_gpus
from maveriq.contracts import Deployment, Gpu, GpuState, InventoryChanged, Priority, State
from tests.unit.cli.conftest import Called, Events, ScriptedIngress
from tests.unit.cli.records import FIRST, MIB, SECOND, deployment, listed

Call = Callable[..., Called]


def waits(state: State = State.WAITING, reason: str = "needed: 1 GPU(s) L4; largest fragments: a: 20 B") -> Deployment:
    return deployment(state).model_copy(update={"waiting": reason, "placements": ()})


def gpus(foreign_mib: int = 0) -> dict[str, object]:
    gpu = Gpu(id="here/cpu:0", gpu_type="cpu-1t", total_bytes=400 * MIB, foreign_bytes=foreign_mib * MIB)
    node = InventoryChanged(node="here", engine="torch", gpus=(GpuState(gpu=gpu),))
    return {"data": [node.model_dump(mode="json")]}


def script(ingress: ScriptedIngress, *steps: dict[str, object]) -> Callable[[float], None]:
    """A sleep after which there is something else to read; Ctrl-C at the end."""
    rest: Iterator[dict[str, object]] = iter(steps)
    ingress.answer("GET /v1/gpus", gpus())
    ingress.answer("GET /v1/deployments", listed(waits()))

    def sleep(seconds: float) -> None:
        step = next(rest, None)
        if step is None:
            raise KeyboardInterrupt
        for request, body in step.items():
            ingress.answer(request, body)

    return sleep


def test_as_json_there_is_one_line_a_change(ingress: ScriptedIngress, capsys: pytest.CaptureFixture[str]) -> None:
    sleep = script(ingress, {}, {"GET /v1/gpus": gpus(100)}, {}, {"GET /v1/deployments": listed()})
    watch_gpus(Api(ingress.url), None, sleep)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert [len(line["waiting"]) for line in lines] == [1, 1, 0]
    assert lines[0]["waiting"][0]["reason"].startswith("needed: 1 GPU(s) L4")
    assert lines[1]["gpus"][0]["gpus"][0]["gpu"]["foreign_bytes"] == 100 * MIB


def test_live_it_draws_the_bars_and_who_waits_and_says_when_it_is_not_current(ingress: ScriptedIngress) -> None:
    screen = io.StringIO()
    broken = {"error": {"message": "the store does not answer", "type": "server_error", "param": None, "code": "x"}}
    sleep = script(ingress, {"GET /v1/gpus": gpus(100)})

    def then_broken(seconds: float) -> None:
        try:
            sleep(seconds)
        except KeyboardInterrupt:
            if ingress.answers["GET /v1/gpus"][0] == 503:
                raise
            ingress.answer("GET /v1/gpus", broken, 503)

    watch_gpus(Api(ingress.url), Console(file=screen, force_terminal=True, width=100), then_broken)
    drawn = screen.getvalue()
    assert "▒▒▒▒" in drawn and "tiny 11111111 waits" in drawn
    assert "not current: the store does not answer" in drawn


def test_into_a_file_it_draws_one_picture_a_change_that_shows(ingress: ScriptedIngress) -> None:
    file = io.StringIO()
    sleep = script(ingress, {}, {"GET /v1/gpus": gpus(100)}, {"GET /v1/gpus": gpus(100)}, {})
    watch_gpus(Api(ingress.url), Console(file=file, width=100), sleep)
    assert file.getvalue().count("here/cpu:0") == 2
    assert "\x1b" not in file.getvalue()


def test_gpus_and_ps_tell_who_waits_in_the_order_of_the_line(ingress: ScriptedIngress, call: Call) -> None:
    ahead = waits().model_copy(update={"deployment_id": SECOND})
    ahead = ahead.model_copy(update={"intent": ahead.intent.model_copy(update={"priority": Priority.HIGH})})
    ingress.answer("GET /v1/gpus", gpus())
    ingress.answer("GET /v1/deployments", listed(waits(), ahead))
    out = call("gpus").out
    assert out.index("tiny 12222222 waits (priority high): needed") < out.index("tiny 11111111 waits: needed")
    assert "11111111 waits for memory: needed: 1 GPU(s) L4" in call("ps").out


def test_deploy_says_that_it_waits_and_why(ingress: ScriptedIngress, call: Call) -> None:
    accepted = deployment(State.ACCEPTED).model_dump(mode="json")
    ingress.answer("POST /v1/intents", accepted, 202)
    steps = [deployment(State.PLANNED), waits(), deployment(State.RESERVED), deployment(State.READY)]
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", Events(each.model_dump(mode="json") for each in steps))
    called = call("deploy", "tiny")
    assert called.code == 0
    (line,) = [line for line in called.out.splitlines() if line.startswith("… waiting")]
    assert "needed: 1 GPU(s) L4" in line
    assert [line.split()[1] for line in called.out.splitlines() if line.startswith("✓")][-2:] == ["reserved", "ready"]
