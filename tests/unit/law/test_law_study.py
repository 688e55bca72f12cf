"""The study of the law: terms are left out for as long as asked, and one model is too few to leave out."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from maveriq_profiler import run_terms
from tests.unit.law.shapes import facts, rig
from tests.unit.law.test_released_runs import folder, row


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return importlib.import_module("law_study")


def terms() -> set[str]:
    run = {"batch": 8, "num_layers": 8, "num_stages": 2, "fullest": 5}
    decode = run_terms.decode_terms(facts(), rig(), context_tokens=64, **run)
    return set(decode.through(8))


def test_terms_are_left_out_for_as_long_as_asked(study):
    whole = terms()
    with study.without(("attend", "rows@")):
        assert whole - terms() == {"attend"} | {name for name in whole if name.startswith("rows@") and "[" in name}
    assert terms() == whole


def test_one_model_cannot_be_left_out(study, tmp_path):
    with pytest.raises(SystemExit, match="1 model"):
        study.study(study.read([folder(tmp_path / "a", row("llama-2-7b"))]))


def test_models_without_whole_runs_count_as_larger_ones_and_repeats_are_told_apart_by_tp(study, tmp_path):
    rows = study.read([folder(tmp_path / "a", row("llama-2-7b"), row("gptj-6b", layers="28"))])
    assert study.larger_models(rows) == {}
    assert study.repeats([*rows, *rows, *rows])["TP 1"]["max"] == 0.0
