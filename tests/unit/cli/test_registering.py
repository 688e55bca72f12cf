"""How variants are written, and what result files of lm-evaluation-harness say of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maveriq.cli.api import CommandFailed
from maveriq.cli.registering import build_model, parse_variant
from tests.unit.cli.conftest import Called, ScriptedIngress

Call = Callable[..., Called]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("bf16", {"precision": "bf16"}),
        ("int8=0.99@/models/q8", {"precision": "int8", "accuracy": 0.99, "source": "/models/q8"}),
        ("int8+kv-fp8=0.98", {"precision": "int8", "kv_precision": "fp8", "accuracy": 0.98}),
        ("pruned:bf16@org/pruned", {"name": "pruned", "precision": "bf16", "source": "org/pruned"}),
        (
            "a:b:int4+kv-int8=0.9@host:/m=1@2",
            {"name": "a:b", "precision": "int4", "kv_precision": "int8", "accuracy": 0.9, "source": "host:/m=1@2"},
        ),
    ],
)
def test_a_variant_says_what_was_given_and_no_more(text: str, fields: dict[str, object]) -> None:
    assert parse_variant(text) == fields


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int7", "'int7' is none of fp32"),
        ("int8+fp8", "write it as in int8+kv-int8"),
        ("int8+kv-int7", "'int7' is none of fp32"),
        ("int8=good", "'good' is no number"),
    ],
)
def test_a_variant_written_wrongly_names_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(CommandFailed, match=r"--variant: ") as failed:
        parse_variant(text)
    assert words in str(failed.value)


def shape(folder: Path, **changes: int) -> str:
    folder.mkdir()
    config = {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128, "vocab_size": 99} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_pruned_checkpoint_of_another_shape_is_to_be_a_model_of_its_own(tmp_path: Path) -> None:
    model, pruned = shape(tmp_path / "model"), shape(tmp_path / "pruned", intermediate_size=96)
    same = shape(tmp_path / "same")
    with pytest.raises(CommandFailed) as failed:
        build_model("tiny", model, ["bf16", f"pruned:bf16@{pruned}"], [])
    assert "intermediate_size 96 where the model has 128" in str(failed.value)
    assert f"maveriq register NAME {pruned}" in str(failed.value)
    assert build_model("tiny", model, ["bf16", f"sparse:bf16@{same}"], []).variants[1].source == same


def results(file: Path, tasks: dict[str, dict[str, float]], **more: Any) -> str:
    file.write_text(json.dumps({"results": tasks, "config": {"model": "hf"}, **more}))
    return str(file)


def samples(**tasks: int) -> dict[str, dict[str, int]]:
    return {task: {"original": 10_000, "effective": number} for task, number in tasks.items()}


FULL = {
    "hellaswag": {"alias": "hellaswag", "acc,none": 0.5, "acc_stderr,none": 0.01, "acc_norm,none": 0.6},
    "gsm8k": {"exact_match,strict-match": 0.4},
    "wikitext": {"word_perplexity,none": 11.0},
}


def test_results_become_the_mean_of_each_tasks_share_of_full_precision(
    ingress: ScriptedIngress, call: Call, tmp_path: Path
) -> None:
    ingress.answer("POST /v1/models", {}, 201)
    full = results(tmp_path / "full.json", FULL)
    theirs = {"hellaswag": {"acc,none": 0.5, "acc_norm,none": 0.57}, "gsm8k": {"exact_match,strict-match": 0.3}}
    int8 = results(tmp_path / "int8.json", theirs)
    called = call(
        "register", "tiny", "org/tiny", "--variant", "bf16", "--variant", "int8@/models/q8", "--variant", "fp16=1",
        "--from-lm-eval", f"int8={int8}", "--from-lm-eval", f"bf16={full}",
    )  # fmt: skip
    assert called.code == 0, called
    bf16, quantised, fp16 = ingress.asked[0][1]["variants"]
    assert (bf16["accuracy"], bf16["provenance"]) == (1.0, "lm_eval")
    assert quantised["accuracy"] == pytest.approx((0.57 / 0.6 + 0.3 / 0.4) / 2)
    assert quantised["evidence"] == (
        "mean over hellaswag acc_norm, gsm8k exact_match,strict-match: int8.json beside full.json"
    )
    assert fp16 == {"precision": "fp16", "accuracy": 1.0}


def test_a_group_of_tasks_counts_once_and_not_with_its_parts(tmp_path: Path) -> None:
    tasks = {"mmlu": {"acc,none": 0.5}, "mmlu_law": {"acc,none": 0.1}, "arc_easy": {"acc,none": 0.8}}
    groups = {"mmlu": ["mmlu_law"], "arc_easy": []}
    full = results(tmp_path / "full.json", tasks, group_subtasks=groups)
    halved = {**tasks, "mmlu": {"acc,none": 0.25}, "mmlu_law": {"acc,none": 0.0}}
    int8 = results(tmp_path / "int8.json", halved, group_subtasks=groups)
    model = build_model("t", "org/t", ["int8@/q"], [f"int8={int8}", f"full={full}"])
    assert model.variants[0].accuracy == pytest.approx((0.5 + 1.0) / 2)


def test_without_variants_the_usual_ones_take_the_results(tmp_path: Path) -> None:
    full = results(tmp_path / "full.json", FULL)
    fp16 = results(tmp_path / "fp16.json", {"hellaswag": {"acc_norm,none": 0.594}})
    model = build_model("t", "org/t", [], [f"fp16={fp16}", f"fp32={full}"])
    assert {each.label: each.accuracy for each in model.variants} == {"fp32": 1.0, "bf16": 1.0, "fp16": 0.99}


def test_results_that_cannot_be_compared_name_the_file_and_what_is_missing(tmp_path: Path) -> None:
    full = results(tmp_path / "full.json", FULL, **{"n-samples": samples(hellaswag=10_000)})
    few = results(tmp_path / "few.json", FULL, **{"n-samples": samples(hellaswag=100)})
    other = results(tmp_path / "other.json", {"arc_easy": {"acc,none": 0.7}})
    bare = results(tmp_path / "bare.json", {"wikitext": {"word_perplexity,none": 11.0}})
    zero = results(tmp_path / "zero.json", {"hellaswag": {"acc_norm,none": 0.0}})
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("accuracy: good")
    wrong = {
        (f"int8={tmp_path}/absent.json", f"bf16={full}"): f"{tmp_path}/absent.json: cannot be read",
        (f"int8={tmp_path}/text.json", f"bf16={full}"): f"{tmp_path}/text.json: is no JSON",
        (f"int8={tmp_path}/list.json", f"bf16={full}"): f"{tmp_path}/list.json: has no 'results'",
        (f"int8={bare}", f"bf16={full}"): f"{bare}: no task has one of the metrics acc_norm",
        (f"int8={other}", f"bf16={full}"): f"{other} and {full} have no task in common (arc_easy; hellaswag, gsm8k)",
        (f"int8={few}", f"bf16={full}"): f"{few}: hellaswag was run with 100 samples, in {full} with 10000",
        (f"int8={full}", f"bf16={zero}"): f"{zero}: acc_norm,none of hellaswag is 0",
        (f"int8={few}",): "the results of full precision are missing",
        (f"int4={few}", f"bf16={full}"): "'int4' is no variant of this model (bf16, int8)",
        (full,): "write VARIANT=FILE",
    }
    for given, words in wrong.items():
        with pytest.raises(CommandFailed, match=r"^--from-lm-eval: ") as failed:
            build_model("t", "org/t", ["bf16", "int8@/q"], list(given))
        assert words in str(failed.value), given


def test_an_accuracy_given_twice_is_refused(tmp_path: Path) -> None:
    full = results(tmp_path / "full.json", FULL)
    with pytest.raises(CommandFailed, match="int8 has an accuracy in --variant too"):
        build_model("t", "org/t", ["bf16", "int8=0.9@/q"], [f"int8={full}", f"bf16={full}"])
