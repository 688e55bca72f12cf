"""`maveriq accuracy`: asks, follows to the end, shows what each variant keeps."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from maveriq.contracts import LayerSensitivity, Model, Precision, Provenance, Variant, VariantAccuracy
from maveriq.contracts.accuracy import AccuracyRecord, VariantProgress
from tests.unit.cli.conftest import Called, ScriptedIngress

Call = Callable[..., Called]
ID = UUID(int=3)
BEGUN = AccuracyRecord(accuracy_id=ID, model="org/tiny", variants=("fp32", "int8"), max_tokens=600)
DONE = BEGUN.model_copy(
    update={
        "progress": (VariantProgress(variant="fp32", num_done=600, num_tokens=600),),
        "finished": True,
        "reference": Precision.FP32,
        "num_tokens": 600,
        "results": (
            VariantAccuracy(variant="fp32", perplexity=12.0, agreement=1.0, relative=1.0),
            VariantAccuracy(variant="int8", problem="int8: only the serving engine makes int8"),
        ),
    }
)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("maveriq.cli.accuracy.POLL_S", 0.01)
    file = tmp_path / "text.txt"
    file.write_text("some words " * 40)
    yield file


def answers(ingress: ScriptedIngress, record: AccuracyRecord) -> None:
    told: Any = record.model_dump(mode="json")
    ingress.answer("POST /v1/models/org/tiny/accuracy", BEGUN.model_dump(mode="json"), 202)
    ingress.answer(f"GET /v1/models/org/tiny/accuracy/{ID}", told)


def test_it_shows_what_was_measured_and_why_the_rest_was_not(ingress: ScriptedIngress, call: Call, text: Path) -> None:
    answers(ingress, DONE)
    called = call("accuracy", "org/tiny", "--text", str(text), "--max-tokens", "600")
    assert called.code == 0, called
    assert ingress.asked[0][1] == {"text": text.read_text(), "max_tokens": 600}
    assert "measuring fp32 on 600 tokens" in called.out
    assert "100.00%" in called.out and "1.0000" in called.out
    assert "only the serving engine makes int8" in called.out


def test_as_json_it_is_the_record_and_nothing_else(ingress: ScriptedIngress, call: Call, text: Path) -> None:
    answers(ingress, DONE)
    told = json.loads(call("accuracy", "org/tiny", "--text", str(text), "--json").out)
    assert told["results"][0]["relative"] == 1.0
    assert "max_tokens" not in ingress.asked[0][1]


LOST = DONE.model_copy(
    update={
        "layers": (Precision.INT8, Precision.INT4),
        "variants": ("layers in int8", "layers in int4"),
        "progress": (VariantProgress(variant="layers in int8", num_done=2, num_tokens=2),),
        "results": (),
        "sensitivity": LayerSensitivity(
            precisions=(Precision.FP32, Precision.INT8, Precision.INT4), layers=((0, 0.0001, 0.02), (0, 0.0003, 0.0412))
        ),
    }
)


def test_layers_are_shown_each_with_what_it_loses_and_the_sum(ingress: ScriptedIngress, call: Call, text: Path) -> None:
    answers(ingress, LOST)
    called = call("accuracy", "org/tiny", "--layers", str(text))
    assert called.code == 0, called
    assert ingress.asked[0][1] == {"text": text.read_text(), "max_tokens": 1024, "layers": ["int8", "int4"]}
    assert "measuring layers in int8, 2 passes" in called.out
    rows = [line.split() for line in called.out.splitlines()]
    assert ["1", "0.0003", "0.0412"] in rows and ["all", "0.0004", "0.0612"] in rows
    told = json.loads(call("accuracy", "org/tiny", "--layers", str(text), "--json").out)
    assert told["sensitivity"]["layers"][1] == [0, 0.0003, 0.0412]


def test_one_text_is_measured_on_for_variants_or_for_layers(ingress: ScriptedIngress, call: Call, text: Path) -> None:
    for options in ((), ("--text", str(text), "--layers", str(text)), ("--text", str(text), "--precision", "int8")):
        called = call("accuracy", "org/tiny", *options)
        assert called.code == 2 and "--" in called.err, called


def test_what_could_not_be_measured_is_an_error_with_the_reason(
    ingress: ScriptedIngress, call: Call, text: Path
) -> None:
    problem = "fp32 takes 26.1 GiB (4.0 GiB are free); free some and measure again"
    answers(ingress, BEGUN.model_copy(update={"finished": True, "problem": problem}))
    called = call("accuracy", "org/tiny", "--text", str(text))
    assert (called.code, called.err) == (1, f"maveriq: {problem}\n")
    assert "cannot read" in call("accuracy", "org/tiny", "--text", "/nowhere").err


def test_models_tells_each_variants_accuracy_and_where_it_is_from(ingress: ScriptedIngress, call: Call) -> None:
    variants = (
        Variant(precision=Precision.BF16, accuracy=1.0),
        Variant(precision=Precision.INT8, source="/q8", accuracy=0.9912, provenance=Provenance.MEASURED),
        Variant(precision=Precision.FP8),
    )
    model = Model(name="tiny", source="org/tiny", variants=variants, sensitivity=LOST.sensitivity).model_dump(
        mode="json"
    )
    ingress.answer("GET /v1/models", {"data": [{"id": "tiny", "registered": model}, {"id": "x", "registered": None}]})
    told = "bf16 1, int8 0.991 measured, fp8 not measured; layers measured in int8, int4"
    assert told in " ".join(call("models").out.split())
