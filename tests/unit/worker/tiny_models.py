"""Random models of a few thousand parameters, saved as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from maveriq.contracts import Precision
from maveriq_worker.torch_stage import TorchStage
from maveriq_worker.torch_steps import Pick, StageSpec, Step

NUM_LAYERS = 4
VOCABULARY = 260  # every byte, and specials
SHAPE: dict[str, Any] = {
    "num_hidden_layers": NUM_LAYERS, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY,
    "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_model(family: str, folder: Path, *, as_published: bool = False, **changes: Any) -> Any:
    """A random model, written to `folder`; weights far enough from 0 that its tokens vary.

    Args:
        family: of a config's class; what follows a comma is ours.
        as_published: named as checkpoints are, where modules have other names.
    """
    kind = family.partition(",")[0]
    shape = {name: value for name, value in SHAPE.items() if (kind, name) != ("Falcon", "head_dim")}  # its own sets it
    config = getattr(transformers, f"{kind}Config")(**{**shape, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3) if weight.ndim > 1 else weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder, save_original_format=as_published)
    return model


def save_tokenizer(folder: Path, *, template: str | None = TEMPLATE) -> None:
    """One token a byte, and three specials."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=template
    )
    fast.save_pretrained(folder)


def spec(folder: Path, split: tuple[int, ...], rank: int, **changes: Any) -> StageSpec:
    fields: dict[str, Any] = {
        "rank": rank, "num_stages": len(split), "first_layer": sum(split[:rank]), "num_layers": split[rank],
        "total_layers": sum(split), "checkpoint": folder, "precision": Precision.FP32, "device": "cpu",
        "backend": "gloo", "rendezvous": folder, "max_batch": 3, "context_tokens": 64, "reserved_bytes": 10**9,
        "threads": 1, "eos_ids": (258,),
    }  # fmt: skip
    return StageSpec(**{**fields, **changes})


def greedy(stages: list[TorchStage], prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """The stages one after another in this process, all prompts in one batch, each at its own position."""
    answers: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):  # row by row, so that the batch is ragged
        step = Step(0, number, (tuple(prompt),), (0,), (Pick(number, 0, len(prompt) - 1),))
        answers[number] += _run(stages, step)
    for count in range(num_tokens - 1):
        fed = tuple((answer[-1],) for answer in answers)
        starts = tuple(len(prompt) + count for prompt in prompts)
        picks = tuple(Pick(number, number, 0) for number in range(len(prompts)))
        for answer, token in zip(answers, _run(stages, Step(0, 0, fed, starts, picks)), strict=True):
            answer.append(token)
    return answers


def _run(stages: list[TorchStage], step: Step) -> list[int]:
    hidden: torch.Tensor | None = None
    for stage in stages:
        hidden = stage.forward(step, hidden)
    assert hidden is not None
    return [int(token) for token in hidden.argmax(-1)]
