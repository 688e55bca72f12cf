"""What a node says of its devices."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from maveriq.settings import BadSetting
from maveriq_worker.descendants import descendants, end
from maveriq_worker.devices import CpuDevices, NvmlDevices, find_devices, visible_gpus
from maveriq_worker.settings import Settings, cpu_devices

GIB = 2**30
UUIDS = ("GPU-aaa", "GPU-bbb", "GPU-abc")


@dataclass
class Running:
    pid: int
    usedGpuMemory: int | None


@dataclass
class Memory:
    total: int
    used: int


class Nvml:
    """The functions of pynvml that are used, over GPUs that the test declares."""

    class NVMLError(Exception):
        pass

    def __init__(self, used_bytes: int = 0, running: list[Running] | None = None, driver: bool = True) -> None:
        self._used_bytes, self._running, self._driver = used_bytes, running, driver

    def nvmlInit(self) -> None:
        if not self._driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return UUIDS[handle]

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA Test GPU"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Memory:
        return Memory(total=80 * GIB, used=self._used_bytes)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Running]:
        if self._running is None:
            raise self.NVMLError("Not Supported")
        return self._running


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("nvml", ()),
        ("cpu:0=300MiB,cpu:1=220MiB", ((0, 300 * 2**20), (1, 220 * 2**20))),
        (" cpu:3 = 1.5GiB ", ((3, 3 * 2**29),)),
        ("cpu:0=2GB", ((0, 2 * 10**9),)),
    ],
)
def test_devices_are_declared_with_their_sizes(text: str, sizes: tuple[tuple[int, int], ...]) -> None:
    assert cpu_devices(text) == sizes


@pytest.mark.parametrize(
    "text", ["gpu:0=1GiB", "cpu:0", "cpu:0=1", "cpu:0=1XiB", "cpu:0=0MiB", "cpu:0=1B,cpu:0=1B", ","]
)
def test_a_declaration_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        cpu_devices(text)


def test_a_cpu_device_is_of_a_type_that_says_its_threads_and_has_no_strangers() -> None:
    devices = CpuDevices("n1", ((0, GIB), (2, 2 * GIB)), threads_per_stage=3)
    assert [(g.id, g.gpu_type, g.foreign_bytes) for g in devices.report({"n1/cpu:0": 5})] == [
        ("n1/cpu:0", "cpu-3t", 0),
        ("n1/cpu:2", "cpu-3t", 0),
    ]
    device = devices.find("n1/cpu:2")
    assert device is not None
    assert (device.kind, device.index) == ("cpu", 2)
    assert devices.find("n1/cpu:1") is None


@pytest.mark.parametrize(
    ("visible", "shown"),
    [
        (None, UUIDS),
        ("2,0", ("GPU-abc", "GPU-aaa")),
        ("GPU-bbb", ("GPU-bbb",)),
        ("GPU-b,0", ("GPU-bbb", "GPU-aaa")),
        ("", ()),
        ("1,7,0", ("GPU-bbb",)),
        ("-1", ()),
        ("GPU-a", ()),
        ("1,1", ("GPU-bbb",)),
    ],
)
def test_gpus_are_those_that_cuda_shows_in_its_order(visible: str | None, shown: tuple[str, ...]) -> None:
    assert visible_gpus(UUIDS, visible) == shown


def test_ordinals_count_the_visible_gpus() -> None:
    devices = NvmlDevices(Nvml(), "2,0")
    first = devices.find("GPU-abc")
    assert first is not None
    assert (first.kind, first.index) == ("cuda", 0)
    assert devices.find("GPU-bbb") is None


@pytest.mark.parametrize(
    ("running", "foreign_bytes"),
    [
        ([Running(1, 6 * GIB), Running(os.getpid(), 4 * GIB)], 6 * GIB),  # by pid
        ([Running(1, 10 * GIB)], 7 * GIB),  # our pids are not the driver's: what we hold is ours
        ([Running(os.getpid(), None)], 7 * GIB),  # sizes not told
        (None, 7 * GIB),  # processes not told
    ],
)
def test_what_our_own_replicas_take_is_not_foreign(running: list[Running] | None, foreign_bytes: int) -> None:
    (gpu,) = NvmlDevices(Nvml(10 * GIB, running), "0").report({"GPU-aaa": 3 * GIB})
    assert gpu.foreign_bytes == foreign_bytes
    assert gpu.gpu_type == "NVIDIA Test GPU"


def test_bytes_that_a_replica_does_not_use_yet_are_not_foreign_and_never_negative() -> None:
    (gpu,) = NvmlDevices(Nvml(2 * GIB, []), "0").report({"GPU-aaa": 3 * GIB})
    assert gpu.foreign_bytes == 0


@pytest.mark.parametrize(("nvml", "visible"), [(Nvml(driver=False), None), (Nvml(), "")])
def test_a_node_without_gpus_does_not_start_and_says_what_to_declare(nvml: Nvml, visible: str | None) -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_DEVICES"):
        NvmlDevices(nvml, visible)


def test_tensorrt_llm_on_cpu_devices_is_refused() -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_ENGINE=trtllm"):
        find_devices(Settings.of({"MAVERIQ_ENGINE": "trtllm", "MAVERIQ_DEVICES": "cpu:0=1GiB"}))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_descendants_are_found_and_ended_and_a_number_used_again_is_not() -> None:
    nap = "import time; time.sleep(60)"
    shell = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {nap!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", shell]) as child:
        while not (found := descendants(child.pid)):
            pass
        assert child.pid in descendants(os.getpid())
        (below,) = found
        end({below: found[below] + 1})
        assert below in descendants(child.pid)
        end({below: found[below]})
        assert child.wait(10) == 0
