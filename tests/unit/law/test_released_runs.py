"""The benchmark of the estimators: on made-up folders and, where it is at hand, on the released data."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).parents[4] / "shared" / "data" / "maveriq_a6000"
HEADER = (
    "Model,TP,PP,PP_Map,DTYPE,INT8_KV_Cache,Output_Lenght,Batch_Size,Latency,Memory-Pre-Run,Memory-After-Run,"
    "Time-Gen-Graph,Time-Prof\n"
)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return importlib.import_module("estimator")


def folder(path: Path, *rows: str) -> Path:
    path.mkdir()
    for table in ("full_model", "fingerprint"):
        (path / f"{table}.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def row(model: str, o: int = 100, layers: str = "32") -> str:
    return f"{model},1,1,{layers},float16,False,{o},1,{0.1 + 0.02 * o},13,14,100,20"


def test_a_model_whose_shape_is_unknown_is_named(benchmark, tmp_path):
    with pytest.raises(SystemExit, match=r"full_model.csv, line 3: .*opt-6b"):
        benchmark.read([folder(tmp_path / "a", row("llama-2-7b"), row("opt-6b"))])


def test_a_folder_without_what_is_needed_is_refused(benchmark, tmp_path):
    with pytest.raises(SystemExit, match=r"full_model.csv"):
        benchmark.read([tmp_path])


def test_rows_of_several_folders_are_merged_and_counted_once(benchmark, tmp_path):
    one = folder(tmp_path / "a", row("llama-2-7b"))
    two = folder(tmp_path / "b", row("llama-2-7b"), row("gptj-6b", layers="28"))
    assert len(benchmark.read([one, two])) == 2 * 2


def test_one_model_cannot_be_left_out(benchmark, tmp_path):
    with pytest.raises(SystemExit, match="1 model"):
        benchmark.measure(benchmark.read([folder(tmp_path / "a", row("llama-2-7b"))]))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the released measurements are not in {DATA}")
def test_models_left_out_are_predicted_and_chosen_for(benchmark):
    rows = benchmark.read([DATA])
    each = [list(benchmark.by_law(rows, model)) for model in benchmark.models_of(rows)]
    found = benchmark.scores([guess for many in each for guess in many], each)
    assert found["latency_ape"]["median"] < 1.2
    assert found["latency_ape"]["p90"] < 3
    assert found["memory_ape"]["median"] < 1
    assert found["regret"]["mean"] < 1.01
    assert found["inside_90_percent_interval"] > 0.85
