"""What the profiler's environment may say, and which rig follows from it."""

from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest

from maveriq.contracts import Precision
from maveriq.settings import BadSetting
from maveriq_profiler.rig import find_rig
from maveriq_profiler.settings import Settings

ENV = {"MAVERIQ_REDIS_URL": "redis://localhost"}


class NvmlError(Exception):
    """As pynvml's."""


def nvml(*names: str) -> Any:
    """pynvml on a machine with these GPUs; none: a machine without a driver."""

    def init() -> None:
        if not names:
            raise NvmlError("Driver Not Loaded")

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetName=lambda number: names[number],
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAVERIQ_ENGINE", "vllm"),
        ("MAVERIQ_PROFILE_DEVICE", "gpu"),
        ("MAVERIQ_THREADS_PER_STAGE", "0"),
        ("MAVERIQ_MAX_PP", "-1"),
        ("MAVERIQ_PROFILE_LAYERS", "2,,4"),
        ("MAVERIQ_PROFILE_BATCHES", "one"),
        ("MAVERIQ_PROFILE_BUDGET_S", "nan"),
    ],
)
def test_a_bad_setting_stops_the_start_with_its_name(name: str, value: str) -> None:
    with pytest.raises(BadSetting, match=name):
        Settings.from_env(ENV | {name: value})


def test_a_store_must_be_named() -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_REDIS_URL"):
        Settings.from_env({})


def test_without_a_gpu_the_cpu_is_measured_with_the_workers_threads() -> None:
    rig = find_rig(Settings.from_env(ENV | {"MAVERIQ_THREADS_PER_STAGE": "2"}), nvml())
    assert (rig.device, rig.gpu_type, rig.threads) == ("cpu", "cpu-2t", 2)
    assert rig.precisions == (Precision.FP32, Precision.BF16, Precision.INT8, Precision.INT4)
    assert rig.engine_version.startswith(version("torch"))


def test_a_gpu_is_named_as_nvml_names_it() -> None:
    rig = find_rig(Settings.from_env(ENV | {"MAVERIQ_PROFILE_DEVICE": "cuda:1"}), nvml("NVIDIA L4", "NVIDIA H100"))
    assert (rig.device, rig.gpu_type) == ("cuda:1", "NVIDIA H100")
    assert Precision.FP16 in rig.precisions


def test_where_the_workers_serve_on_cpus_the_cpu_is_measured_though_there_is_a_gpu() -> None:
    assert find_rig(Settings.from_env(ENV | {"MAVERIQ_DEVICES": "cpu:0=1GiB"}), nvml("NVIDIA L4")).device == "cpu"


def test_a_gpu_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_PROFILE_DEVICE"):
        find_rig(Settings.from_env(ENV | {"MAVERIQ_PROFILE_DEVICE": "cuda:1"}), nvml("NVIDIA L4"))


def test_a_missing_tensorrt_llm_stops_the_start_and_says_how_to_get_it() -> None:
    with pytest.raises(BadSetting, match=r"pip install 'tensorrt-llm>=1\.2'.*MAVERIQ_ENGINE=torch"):
        find_rig(Settings.from_env(ENV | {"MAVERIQ_ENGINE": "trtllm"}), nvml("NVIDIA L4"))
