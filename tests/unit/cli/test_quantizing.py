"""`maveriq quantize`: from files to a split on the screen, and errors that name the option."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from maveriq.cli.api import CommandFailed
from maveriq.cli.app import app
from tests.unit.planner.measurements import BIG, BIG_MODEL, calibration
from tests.unit.planner.test_quantize_tables import SMALL

SLOW = "NVIDIA T4"


def run(*arguments: str) -> str:
    """Raises CommandFailed, as the process would print it."""
    result = CliRunner().invoke(app, ["quantize", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def tables(tmp_path: Path) -> str:
    path = tmp_path / "tables.json"
    path.write_text(json.dumps(SMALL))
    return str(path)


@pytest.fixture
def law(tmp_path: Path) -> list[str]:
    sources: dict[str, Any] = {
        "model": BIG_MODEL.model_dump(mode="json"), "facts": BIG.model_dump(mode="json"),
        "calibrations": [c.model_dump(mode="json") for c in (calibration(), calibration(slower=3.0, gpu_type=SLOW))],
    }  # fmt: skip
    (tmp_path / "law.json").write_text(json.dumps(sources))
    rows = [[0.0, 0.01 * (1 + layer / 10), 0.2 * (1 + layer / 10)] for layer in range(BIG.num_layers)]
    (tmp_path / "lost.json").write_text(json.dumps({"precisions": ["fp16", "int8", "int4"], "layers": rows}))
    return ["--law", str(tmp_path / "law.json"), "--sensitivity", str(tmp_path / "lost.json")]


def test_tables_become_a_split_that_a_human_and_a_program_can_read(tables: str) -> None:
    shown = run("--tables", tables)
    assert "proven within" in shown and "searched" in shown
    found = json.loads(run("--tables", tables, "--json"))
    assert sum(stage["num_layers"] for stage in found["stages"]) == 4
    assert {stage["gpu"] for stage in found["stages"]} == {"a", "b"}
    assert all(stage["layer_bytes"] <= stage["free_bytes"] for stage in found["stages"])


def test_theta_and_the_floor_of_accuracy_decide_between_speed_and_precision(tables: str) -> None:
    def lost(*arguments: str) -> float:
        return float(json.loads(run("--tables", tables, "--json", *arguments))["sensitivity"])

    assert lost("--theta", "0") > lost("--theta", "1000") == 0
    assert lost("--theta", "0", "--max-sensitivity", "2.5") <= 2.5


def test_a_model_is_split_over_fragments_by_its_law(law: list[str]) -> None:
    gpus = ["--gpu", "big=NVIDIA RTX A6000:9GiB", "--gpu", f"small={SLOW}:4GiB@0.5"]
    plain = ["--requests", "8", "--input-tokens", "256", "--output-tokens", "64", "--json"]
    found = json.loads(run(*law, *gpus, *plain, "--max-sensitivity", "1.0"))
    assert sum(stage["num_layers"] for stage in found["stages"]) == BIG.num_layers
    assert found["sensitivity"] <= 1.0 + 1e-9
    kept = json.loads(run(*law, *gpus, *plain, "--uniform-stages", "--ordered"))
    assert [stage["gpu"] for stage in kept["stages"]] == ["big", "small"]
    assert all(len(set(stage["precisions"])) == 1 for stage in kept["stages"])


def test_without_a_file_of_it_the_sensitivity_that_is_stored_with_the_model_is_taken(
    law: list[str], tmp_path: Path
) -> None:
    arguments = ["--gpu", "a=NVIDIA RTX A6000:9GiB", "--requests", "4", "--json"]
    given = json.loads(run(*law, *arguments))
    kept = json.loads((tmp_path / "law.json").read_text())
    kept["model"]["sensitivity"] = json.loads((tmp_path / "lost.json").read_text())
    (tmp_path / "law.json").write_text(json.dumps(kept))
    assert json.loads(run(*law[:2], *arguments)) == given


def test_what_is_wrong_is_said_with_its_option(tables: str, law: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({**SMALL, "theta": "high"}))
    gpu = ["--gpu", "a=NVIDIA RTX A6000:9GiB"]
    for arguments, field, words in (
        ([], "--tables", "needs --tables, or --law"),
        (["--tables", tables, *law], "--tables", "not both"),
        (["--tables", str(tmp_path / "none.json")], "--tables", "cannot read"),
        (["--tables", str(bad)], "--tables theta", "'high' must be a number"),
        (["--tables", tables, "--max-sensitivity", "-1"], "--max-sensitivity", "greater than or equal to 0"),
        (law, "--gpu", "at least 1"),
        ([*law, "--gpu", "9GiB"], "--gpu", "is no NAME=TYPE:FREEGiB"),
        ([*law, "--gpu", "a=TPU:9GiB"], "--gpu", "no law speaks for them"),
        ([*law, "--gpu", "a=NVIDIA RTX A6000:1GiB"], "--gpu", "the layers do not fit"),
        ([*law[:2], *gpu], "--sensitivity", "what each layer loses"),
        ([*law[:2], *gpu, "--sensitivity", law[1]], "--sensitivity", ""),
    ):
        with pytest.raises(CommandFailed) as failed:
            run(*arguments)
        assert failed.value.field == field, arguments
        assert words in str(failed.value)
