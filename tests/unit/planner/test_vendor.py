"""The vendor's wheel is faked, strictly: shapes that it has no tables of are refused as it refuses them."""

from dataclasses import dataclass

import numpy as np
import pytest

from maveriq.agreed_settings import Method
from maveriq.contracts import Basis, ModelFacts, Precision
from maveriq.settings import BadSetting
from maveriq_planner.estimate import Kind
from maveriq_planner.estimators.aiconfigurator import VendorTables, installed, llama_like, system_of
from maveriq_planner.estimators.vendor import VendorEngine, VendorLaw
from maveriq_planner.sources import sources_of
from tests.unit.planner.measurements import BIG, BIG_MODEL, calibration, intent


@dataclass(frozen=True)
class Engine:
    tp: int
    pp: int
    num_layers: int

    def predict_decode_latency(self, bs: int, isl: int, osl: int = 2) -> float:
        assert bs >= 1
        assert isl >= 1
        return 0.5 + self.num_layers * (0.1 + 0.01 * bs) / self.tp + 0.02 * (self.pp - 1)

    def predict_prefill_latency(self, bs: int, isl: int) -> float:
        return 1.0 + self.num_layers * 0.001 * bs * isl / self.tp + 0.1 * (self.pp - 1)


def compiled(facts: ModelFacts, system: str, kind: Kind, tp: int, pp: int, num_layers: int) -> VendorEngine:
    if (system, kind.precision) not in {("h100_sxm", Precision.FP16), ("h100_sxm", Precision.FP8)}:
        raise RuntimeError(f"perf database error: GEMM perf data missing for {kind.precision} at {system}")
    assert 1 <= num_layers <= facts.num_layers
    return Engine(tp, pp, num_layers)


H100 = "NVIDIA H100 80GB HBM3"


def law() -> VendorLaw:
    found, _ = VendorTables(compiled)(BIG_MODEL, BIG, (), (), (H100,))
    assert isinstance(found[0], VendorLaw)
    return found[0]


def test_types_that_were_not_measured_are_answered_by_the_tables_and_only_those() -> None:
    found, silent = VendorTables(compiled)(BIG_MODEL, BIG, (), (calibration(),), (H100, "NVIDIA RTX A6000", "TPU"))
    bases = {(one.kind.gpu_type, one.kind.variant.label): one.basis for one in found}
    assert {basis for (gpu_type, _), basis in bases.items() if gpu_type == "NVIDIA RTX A6000"} == {Basis.CALIBRATION}
    assert {label for (gpu_type, label) in bases if gpu_type == H100} == {"fp16", "fp8+kv-fp8"} - {"fp8+kv-fp8"} | {
        "fp8"
    }
    assert "TPU was not measured, and aiconfigurator has no tables of it" in silent
    assert any(
        reason.startswith(f"int4 on {H100}: aiconfigurator has no tables (perf database error") for reason in silent
    )


def test_one_request_takes_what_the_tables_say_through_all_stages() -> None:
    found = law().times(2, np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 8.0]), intent(input_tokens=1000).workload)
    whole = Engine(2, 1, 32)
    assert found.step_ms[0] == pytest.approx([whole.predict_decode_latency(b, 1) for b in (1, 3, 8)])
    assert found.step_ms[:, 0] == pytest.approx([Engine(2, pp, 32).predict_decode_latency(1, 1) for pp in (1, 2, 4)])
    assert found.prefill_ms == pytest.approx([Engine(2, pp, 32).predict_prefill_latency(1, 1000) for pp in (1, 2, 4)])


def test_a_full_pipeline_is_bound_by_its_last_stage_which_has_the_ends() -> None:
    found = law().times(1, np.array([4.0]), np.array([8.0]), intent().workload)
    assert found.step_ms[0, 0] == pytest.approx(4 * (8 * 0.12 + 0.5))
    assert law().tp_degrees == (1, 2, 4, 8)


def test_memory_is_counted_and_what_the_vendor_lays_aside_is_added() -> None:
    found = law().footprint(2, np.array([1.0]), np.array([4.0]), 1024)
    assert 3.75e9 + 0.35e9 < found.runtime_bytes[0, 0] < 4.5e9
    assert found.runtime_low_bytes[0, 0] < found.runtime_bytes[0, 0] < found.runtime_high_bytes[0, 0]


@pytest.mark.parametrize(
    ("gpu_type", "system"),
    [(H100, "h100_sxm"), ("NVIDIA H100 PCIe", "h100_pcie"), ("NVIDIA A100-SXM4-80GB", "a100_sxm"), ("NVIDIA L4", "l4"),
     ("NVIDIA L40S", "l40s"), ("NVIDIA A100 80GB PCIe", "a100_pcie"), ("NVIDIA GB200", "gb200"), ("cpu-1t", ""),
     ("NVIDIA GH200 480GB", ""), ("NVIDIA H200", "h200_sxm"), ("NVIDIA L40", "")],
)  # fmt: skip
def test_product_names_are_those_of_nvml(gpu_type: str, system: str) -> None:
    assert system_of(gpu_type) == system


def test_the_model_is_asked_for_as_a_llama_of_its_shape() -> None:
    config = llama_like(BIG, 16)
    assert config["num_hidden_layers"] == 16
    assert config["num_key_value_heads"] == BIG.num_kv_heads


def test_a_missing_wheel_stops_the_start_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiconfigurator_core", None)
    for start in (installed, lambda: sources_of(Method.AICONFIGURATOR)):
        with pytest.raises(BadSetting, match="pip install aiconfigurator-core"):
            start()
