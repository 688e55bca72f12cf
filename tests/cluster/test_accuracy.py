"""Accuracy measured on real weights: what the profiler's process says is what transformers says."""

from math import exp
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maveriq.contracts import AccuracyProgressed, AccuracyRequested, Model, Precision, Variant
from maveriq_profiler.accuracy_measuring import AccuracyMeasuring, free_host_bytes
from maveriq_profiler.children import Children
from maveriq_profiler.facts import read
from maveriq_profiler.measuring import Rig
from maveriq_profiler.orders import Reading
from maveriq_worker.checkpoints import prepare

TEXT = """
The water in a kettle does not boil all at once. First the metal at the bottom grows hot, and the thin sheet of water
that touches it turns to steam; small bubbles rise, meet the colder water above them, and vanish with a faint crackle,
which is the singing that one hears some minutes before the kettle is ready. Only when all of the water has reached a
hundred degrees do the bubbles live long enough to break at the surface. On a mountain this happens sooner, because
there is less air above to hold the water down: in a village at three thousand metres it boils at ninety degrees, and
an egg that takes ten minutes by the sea is not done after fifteen. Cooks there learn to wait, or buy a pot with a lid
that can be screwed shut. Inside it the steam that cannot leave presses on the water as the lost air would have done.
"""
NUM_TOKENS = 180


class Here:
    """Reads configs in this process, which has torch loaded anyway."""

    async def read(self, source: str) -> Reading:
        return read(source)


@pytest.mark.asyncio(loop_scope="session")
async def test_smollm2_is_measured_as_transformers_would_and_what_cannot_be_is_said(
    children: Children, smollm2: Model, cache_dir: Path
) -> None:
    folder = await prepare(smollm2.source, Precision.FP32, cache_dir)
    int8_kv = Variant(precision=Precision.FP32, kv_precision=Precision.INT8)
    variants = (*(Variant(precision=each) for each in (Precision.FP32, Precision.BF16, Precision.INT8)), int8_kv)
    model = Model(name="smollm2", source=str(folder), variants=variants)
    asked = AccuracyRequested(accuracy_id=uuid4(), model=model, text=TEXT, max_tokens=NUM_TOKENS)
    rig = Rig("torch", "2", "cpu-1t", "cpu", 1, (Precision.FP32, Precision.BF16), 4)
    told: list[AccuracyProgressed] = []

    async def report(progressed: AccuracyProgressed) -> None:
        told.append(progressed)

    measuring = AccuracyMeasuring(rig, Here(), children, None, free_host_bytes)
    measured = await measuring.measure(asked, report)
    assert (measured.problem, measured.num_tokens, measured.reference) == ("", NUM_TOKENS, Precision.FP32)
    assert [(each.variant, each.num_done) for each in told] == [
        (label, done) for label in ("fp32", "bf16", "int8", "fp32+kv-int8") for done in (0, NUM_TOKENS)
    ]  # fmt: skip
    fp32, bf16, int8, cache = measured.variants
    assert fp32.perplexity == pytest.approx(_perplexity(folder), rel=1e-4)
    assert (fp32.agreement, fp32.relative) == (1.0, 1.0)
    assert bf16.agreement is not None and 0.9 < bf16.agreement < 1
    assert bf16.relative == pytest.approx(1.0, abs=0.03)
    assert bf16.perplexity is not None and bf16.relative == pytest.approx(fp32.perplexity / bf16.perplexity)
    assert int8.relative == pytest.approx(1.0, abs=0.05) and int8.agreement is not None and int8.agreement > 0.85
    assert cache.relative == pytest.approx(1.0, abs=0.02) and cache.agreement is not None and cache.agreement > 0.95


def _perplexity(folder: Path) -> float:
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"][:NUM_TOKENS]])
    with torch.inference_mode():
        return exp(float(model(input_ids=ids, labels=ids).loss))
