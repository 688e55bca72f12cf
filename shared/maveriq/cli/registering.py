"""From the command line's options to a model. Pure but for local files: options in, model out."""

from pathlib import Path
from typing import Any

from maveriq.cli.api import CommandFailed
from maveriq.cli.intents import checked
from maveriq.cli.lm_eval import compare, read_results
from maveriq.cli.local_shape import difference
from maveriq.contracts import FULL_PRECISIONS, Model, Precision, Provenance, Variant

FULL = "full"
"""Names full precision in --from-lm-eval where the model has no such variant."""


def build_model(name: str, source: str, variants: list[str], lm_eval: list[str]) -> Model:
    """A model from its name, its source and its variants; says only what was given.

    Args:
        variants: each [NAME:]PRECISION[+kv-PRECISION][=ACCURACY][@SOURCE].
        lm_eval: each VARIANT=results.json, one of them full precision's.

    Raises:
        CommandFailed: naming the option and the remedy.
    """
    body: dict[str, Any] = {"name": name, "source": _located(source)}
    if variants:
        body["variants"] = [parse_variant(text) for text in variants]
    options = {"name": "NAME", "source": "SOURCE", "variants": "--variant"}
    model = checked(Model, body, options)
    for variant in model.variants:
        problem = difference(model.source, variant.source, variant.label) if variant.source else ""
        if problem:
            raise CommandFailed(problem, field="--variant", code="other_shape", exit_code=2)
    if lm_eval:
        body["variants"] = _with_results(model, lm_eval)
    return checked(Model, body, options)


def parse_variant(text: str) -> dict[str, object]:
    """`pruned:int8+kv-int8=0.99@/models/q8` as the fields of a Variant. Raises CommandFailed."""
    described, _, source = text.partition("@")
    formats, _, accuracy = described.partition("=")
    name, _, formats = formats.rpartition(":")
    precision, plus, cache = formats.partition("+")
    variant: dict[str, object] = {"name": name} if name else {}
    variant["precision"] = _precision(text, precision)
    if plus:
        if not cache.startswith("kv-"):
            raise _wrong(f"{text!r}: {cache!r} is no KV precision; write it as in int8+kv-int8")
        variant["kv_precision"] = _precision(text, cache.removeprefix("kv-"))
    if accuracy:
        try:
            variant["accuracy"] = float(accuracy)
        except ValueError as error:
            raise _wrong(f"{text!r}: {accuracy!r} is no number; e.g. int8=0.99") from error
    if source:
        variant["source"] = _located(source)
    return variant


def _with_results(model: Model, given: list[str]) -> list[dict[str, Any]]:
    """The model's variants with the accuracies that the result files tell."""
    files = _files(model, given)
    reference = FULL if FULL in files else _reference(model, files)
    full = read_results(files[reference])
    variants: list[dict[str, Any]] = []
    for variant in model.variants:
        body = variant.model_dump(mode="json", exclude_unset=True)
        if variant.label == reference:
            body |= {"accuracy": 1.0, "evidence": f"full precision in {full.path.name}"}
        elif variant.label in files:
            if "accuracy" in body and "variants" in model.model_fields_set:  # else it is the usual one
                raise _wrong_file(f"{variant.label} has an accuracy in --variant too; give one of them")
            relative, evidence = compare(read_results(files[variant.label]), full)
            body |= {"accuracy": relative, "evidence": evidence}
        if variant.label in files:
            body["provenance"] = Provenance.LM_EVAL.value
        variants.append(body)
    return variants


def _files(model: Model, given: list[str]) -> dict[str, Path]:
    labels = [variant.label for variant in model.variants]
    files: dict[str, Path] = {}
    for text in given:
        label, equals, path = text.partition("=")
        if not equals or not path:
            raise _wrong_file(f"{text!r}: write VARIANT=FILE, e.g. int8=results_2026-01-01.json")
        if label != FULL and label not in labels:
            raise _wrong_file(f"{label!r} is no variant of this model ({', '.join(labels)}); add it with --variant")
        files[label] = Path(path)
    return files


def _reference(model: Model, files: dict[str, Path]) -> str:
    """The variant that the others are compared with: the model's own weights, as precise as was evaluated."""
    own = [each for each in model.variants if each.label in files and each.source in (None, model.source)]
    full = sorted((each for each in own if each.precision in FULL_PRECISIONS), key=_coarseness)
    if not full:
        raise _wrong_file(
            "the results of full precision are missing; add them, e.g. --from-lm-eval bf16=results.json, "
            f"or --from-lm-eval {FULL}=results.json where no variant is full precision"
        )
    return full[0].label


def _coarseness(variant: Variant) -> int:
    return FULL_PRECISIONS.index(variant.precision)


def _located(source: str) -> str:
    """A local path whole, because the workers run elsewhere."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _precision(text: str, name: str) -> str:
    if name not in tuple(Precision):
        raise _wrong(f"{text!r}: {name!r} is none of {', '.join(Precision)}")
    return name


def _wrong(problem: str) -> CommandFailed:
    return CommandFailed(problem, field="--variant", exit_code=2)


def _wrong_file(problem: str) -> CommandFailed:
    return CommandFailed(problem, field="--from-lm-eval", exit_code=2)
