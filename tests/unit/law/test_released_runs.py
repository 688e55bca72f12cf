"""The benchmark of the estimators: on made-up folders and, where it is at hand, on the released data."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).parents[4] / "shared" / "data" / "maveriq_a6000"
HEADER = (
    "Model,TP,PP,PP_Map,DTYPE,INT8_KV_Cache,Output_Lenght,Batch_Size,Latency,Memory-Pre-Run,Memory-After-Run,"
    "Time-Gen-Graph,Time-Prof\n"
)

OPT = {
    "model_type": "opt", "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 256, "word_embed_proj_dim": 64,
}  # fmt: skip


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


def test_rows_of_a_model_whose_shape_is_unknown_are_left_out_and_named(benchmark, tmp_path, capsys):
    data = folder(tmp_path / "a", row("llama-2-7b"), row("opt-6b"))
    assert {each.model for each in benchmark.read([data])} == {"llama-2-7b"}
    assert (
        "2 rows left out: the shape of opt-6b is not known: give it with --model opt-6b=DIR" in capsys.readouterr().err
    )


def test_a_shape_may_be_given_by_its_config(benchmark, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OPT))
    shapes = benchmark.shapes([f"opt-6b={tmp_path}"])
    rows = benchmark.read([folder(tmp_path / "a", row("llama-2-7b"), row("opt-6b", layers="2"))], shapes)
    assert {each.sample.facts.num_layers for each in rows if each.model == "opt-6b"} == {2}
    for wrong in ("opt-6b", "opt-6b=nowhere/at/all"):
        with pytest.raises(SystemExit, match=f"--model {wrong}"):
            benchmark.shapes([wrong])


def test_columns_may_come_in_any_order_and_one_that_is_missing_is_named(benchmark, tmp_path):
    data = folder(tmp_path / "a", row("llama-2-7b"), row("gptj-6b", layers="28"))
    expected = benchmark.read([data])
    for path in data.iterdir():
        cells = [line.split(",") for line in path.read_text().splitlines()]
        path.write_text("\n".join(",".join(reversed(line)) for line in cells))
    assert benchmark.read([data]) == expected
    path.write_text("\n".join(",".join(line[1:]) for line in cells))
    with pytest.raises(SystemExit, match=r"no column 'Model'"):
        benchmark.read([data])


def test_rows_without_a_reading_are_left_out(benchmark, tmp_path, capsys):
    empty = row("llama-2-7b").replace("2.1", "")
    assert len(benchmark.read([folder(tmp_path / "a", row("gptj-6b", layers="28"), empty)])) == 2
    assert "no latency" in capsys.readouterr().err


def test_a_model_with_one_row_and_degrees_that_no_other_has_is_scored_as_far_as_anything_is_known(benchmark, tmp_path):
    alone = row("falcon-7b").replace(",1,1,32,", ",8,1,32,")
    report = benchmark.measure(
        benchmark.read([folder(tmp_path / "a", row("llama-2-7b"), row("gptj-6b", layers="28"), alone)])
    )
    assert report["law"]["per_model"]["falcon-7b"]["latency_ape"] == {"n": 0, "unsaid": 1}
    assert report["law"]["per_model"]["falcon-7b"]["regret"] is None
    assert "says nothing of 1" in benchmark.table(report)


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
