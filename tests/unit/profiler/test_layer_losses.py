"""What layers lose is what quantising each of them alone does to the model's output; in process, and in its own."""

import copy
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from maveriq.contracts import AccuracyMeasured, AccuracyProgressed, AccuracyRequested, Model, Precision, Variant
from maveriq.torch_layers import quantise
from maveriq_profiler.accuracy_measuring import AccuracyMeasuring, references
from maveriq_profiler.children import Children
from maveriq_profiler.facts import read
from maveriq_profiler.layer_losses import losses
from maveriq_profiler.orders import Reading
from tests.unit.profiler.rigs import rig
from tests.unit.worker.tiny_models import NUM_LAYERS, save_model, save_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
TOKENS = torch.arange(24) % 200
FP32, BF16, INT8, INT4 = Precision.FP32, Precision.BF16, Precision.INT8, Precision.INT4


def divergence(model: Any, place: int, precision: Precision, tokens: torch.Tensor) -> float:
    """Of a whole copy of the model, summed over the tokens."""
    changed = copy.deepcopy(model)
    quantise(changed.model.layers[place], precision)
    with torch.inference_mode():
        full = model(input_ids=tokens[None]).logits[0].log_softmax(1)
        told = changed(input_ids=tokens[None]).logits[0].log_softmax(1)
    return float((full.exp() * (full - told)).sum())


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])  # Gemma scales embeddings and has layers of two kinds
def test_each_layers_loss_is_that_of_a_copy_in_which_it_alone_is_quantised(family: str, tmp_path: Path) -> None:
    model = save_model(family, tmp_path, **WIDE)
    before = [weight.clone() for weight in model.parameters()]
    told: list[int] = []
    for precision in (INT8, INT4):
        parts = TOKENS.split(16)
        found = losses(model, model.model.layers, parts, precision, told.append)
        expected = [sum(divergence(model, n, precision, part) for part in parts) for n in range(NUM_LAYERS)]
        assert found == pytest.approx([each / len(TOKENS) for each in expected], rel=1e-3, abs=1e-6)
        assert min(found) > 0
    assert told == [*range(1, 2 * NUM_LAYERS + 1)] * 2
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    assert "forward" not in vars(model.model.layers[0])


class Here:
    """Reads configs in this process, which has torch loaded anyway."""

    async def read(self, source: str) -> Reading:
        return read(source)


async def measured(
    children: Children, folder: Path, variants: tuple[Variant, ...], *layers: Precision
) -> AccuracyMeasured:
    text = "Water boils at a hundred degrees. " * 20
    model = Model(name="tiny", source=str(folder), variants=variants)
    asked = AccuracyRequested(accuracy_id=uuid4(), model=model, text=text, max_tokens=64, layers=layers)
    measuring = AccuracyMeasuring(rig(), Here(), children, None, lambda: 10**12)
    told: list[AccuracyProgressed] = []

    async def report(progressed: AccuracyProgressed) -> None:
        told.append(progressed)

    found = await measuring.measure(asked, report)
    assert [each.num_done for each in told if each.num_done in (0, each.num_tokens)] == [
        n for each in dict.fromkeys(each.variant for each in told) for n in (0, _end(told, each))
    ]
    return found


def _end(told: list[AccuracyProgressed], variant: str) -> int:
    return next(each.num_tokens for each in told if each.variant == variant)


@pytest.mark.asyncio(loop_scope="session")
async def test_layers_are_measured_in_a_process_beside_full_precision_which_loses_nothing(
    children: Children, tmp_path: Path
) -> None:
    save_model("Llama", tmp_path, **WIDE)
    save_tokenizer(tmp_path)
    found = await measured(children, tmp_path, (Variant(precision=BF16), Variant(precision=FP32)), INT4, INT8)
    assert (found.problem, found.reference, found.num_tokens, found.variants) == ("", FP32, 64, ())
    assert found.sensitivity is not None
    assert found.sensitivity.precisions == (FP32, INT4, INT8)
    assert len(found.sensitivity.layers) == NUM_LAYERS
    assert all(full == 0 < int8 < int4 for full, int4, int8 in found.sensitivity.layers)
    assert "64 tokens of a text" in found.sensitivity.evidence and "torch" in found.sensitivity.evidence


@pytest.mark.asyncio(loop_scope="session")
async def test_variants_that_the_engine_makes_are_measured_as_it_makes_them(children: Children, tmp_path: Path) -> None:
    save_model("Llama", tmp_path, **WIDE)
    save_tokenizer(tmp_path)
    variants = (
        Variant(precision=FP32),
        Variant(precision=INT8, kv_precision=FP32),
        Variant(precision=INT4, kv_precision=FP32),
        Variant(precision=FP32, kv_precision=INT8),
        Variant(precision=INT8, kv_precision=INT8),
        Variant(precision=FP32, kv_precision=Precision.FP8),
    )
    found = await measured(children, tmp_path, variants)
    full, int8, int4, cache, both, fp8 = found.variants
    assert (full.relative, full.agreement) == (1.0, 1.0)
    assert int8.perplexity != full.perplexity != int4.perplexity
    assert int8.agreement is not None and int4.agreement is not None and int8.agreement >= int4.agreement
    assert cache.relative != 1.0 and cache.agreement is not None and cache.agreement > 0.9
    assert both.perplexity not in (int8.perplexity, cache.perplexity, None)
    assert "only the serving engine keeps a KV cache in fp8" in fp8.problem


def test_layers_are_compared_with_the_best_that_the_model_is_served_in() -> None:
    def asked(*variants: Variant, layers: tuple[Precision, ...] = (INT8,)) -> AccuracyRequested:
        model = Model(name="tiny", source="/m", variants=variants)
        return AccuracyRequested(accuracy_id=uuid4(), model=model, text="", max_tokens=64, layers=layers)

    assert references(asked(Variant(precision=BF16), Variant(precision=FP32))) == (FP32, BF16)
    assert references(asked(Variant(precision=BF16), Variant(precision=INT8))) == (BF16,)
    assert references(asked(Variant(precision=INT8))) == (FP32, BF16)
    assert references(asked(Variant(precision=BF16), layers=())) == (FP32, BF16)
