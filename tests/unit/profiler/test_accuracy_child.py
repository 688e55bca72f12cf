"""What accuracy is measured on is what is served: of a model that sees too, its text half."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3Config

from maveriq.contracts import Precision
from maveriq_profiler.accuracy_child import load
from maveriq_worker.checkpoints import convert
from tests.unit.worker.tiny_models import SHAPE, save_tokenizer


def test_of_a_model_that_sees_too_the_text_half_is_measured_as_it_is_served(tmp_path: Path) -> None:
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 28, "patch_size": 14}  # fmt: skip
    torch.manual_seed(0)
    models: Any = AutoModelForCausalLM
    config = Gemma3Config(text_config={**SHAPE, "sliding_window": 6}, vision_config=seen, mm_tokens_per_image=4)
    models.from_config(config).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    convert(tmp_path / "model", Precision.FP32, tmp_path / "served")
    measured, served = (load(str(tmp_path / name), torch.float32).eval() for name in ("model", "served"))
    assert type(measured) is type(served)
    token_ids = torch.tensor([[4, 9, 2, 7, 1, 5, 3, 8, 6]])
    with torch.inference_mode():
        assert torch.equal(measured(input_ids=token_ids).logits, served(input_ids=token_ids).logits)
