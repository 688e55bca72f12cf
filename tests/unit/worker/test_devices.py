"""What a node says of its devices."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pynvml
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


@dataclass
class Pci:
    domain: int
    bus: int
    device: int


@dataclass
class Rates:
    gpu: int
    memory: int


SWITCH = "switch"


class Nvml:
    """The functions of pynvml that are used, over GPUs that the test declares."""

    NVML_NVLINK_MAX_LINKS = 36
    NVML_NVLINK_DEVICE_TYPE_GPU = 0
    NVML_NVLINK_DEVICE_TYPE_SWITCH = 2
    NVML_TOPOLOGY_SINGLE, NVML_TOPOLOGY_MULTIPLE, NVML_TOPOLOGY_HOSTBRIDGE, NVML_TOPOLOGY_NODE = 10, 20, 30, 40

    class NVMLError(Exception):
        pass

    def __init__(
        self, used_bytes: int = 0, running: list[Running] | None = None, driver: bool = True,
        links: dict[int, list[int | str | None]] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            links: of each GPU by its index, the index of the GPU at the other end, SWITCH, or None where it is down.
        """
        self._used_bytes, self._running, self._driver, self._links = used_bytes, running, driver, links or {}
        self.percent: int | None = 0
        self.ancestors: dict[frozenset[int], int] = {}
        """What two GPUs have in common on PCIe; the driver does not tell of others."""
        self.lost: set[int] = set()

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
        if handle in self.lost:
            raise self.NVMLError("GPU is lost")
        return Memory(total=80 * GIB, used=self._used_bytes)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Running]:
        if self._running is None:
            raise self.NVMLError("Not Supported")
        return self._running

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Rates:
        if self.percent is None:
            raise self.NVMLError("Not Supported")
        return Rates(gpu=self.percent, memory=0)

    def nvmlDeviceGetPciInfo(self, handle: int) -> Pci:
        return Pci(0, 0x17 + handle, 0)

    def nvmlDeviceGetTopologyCommonAncestor(self, handle: int, other: int) -> int:
        if frozenset({handle, other}) not in self.ancestors:
            raise self.NVMLError("Not Supported")
        return self.ancestors[frozenset({handle, other})]

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:
        return self._link(handle, link) is not None

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: int, link: int) -> Pci:
        other = self._link(handle, link)
        return self.nvmlDeviceGetPciInfo(other) if isinstance(other, int) else Pci(0, 0xC0, link)

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: int, link: int) -> int:
        is_switch = self._link(handle, link) == SWITCH
        return self.NVML_NVLINK_DEVICE_TYPE_SWITCH if is_switch else self.NVML_NVLINK_DEVICE_TYPE_GPU

    def _link(self, handle: int, link: int) -> int | str | None:
        links = self._links.get(handle, [])
        if link >= len(links):
            raise self.NVMLError("Invalid Argument")
        return links[link]


def test_the_double_has_nothing_that_the_real_library_lacks() -> None:
    used = [name for name in vars(Nvml) if name.lower().startswith("nvml")]
    assert len(used) > 10
    assert [name for name in used if not hasattr(pynvml, name)] == []


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
    ("running", "foreign_bytes", "own_bytes"),
    [
        ([Running(1, 6 * GIB), Running(os.getpid(), 4 * GIB)], 6 * GIB, 4 * GIB),  # by pid
        ([Running(1, 10 * GIB)], 7 * GIB, None),  # our pids are not the driver's: what we hold is ours
        ([Running(os.getpid(), None)], 7 * GIB, None),  # sizes not told
        (None, 7 * GIB, None),  # processes not told
    ],
)
def test_what_our_own_replicas_take_is_not_foreign(
    running: list[Running] | None, foreign_bytes: int, own_bytes: int | None
) -> None:
    (gpu,) = NvmlDevices(Nvml(10 * GIB, running), "0").report({"GPU-aaa": 3 * GIB})
    assert (gpu.foreign_bytes, gpu.own_bytes) == (foreign_bytes, own_bytes)
    assert gpu.gpu_type == "NVIDIA Test GPU"


def test_bytes_that_a_replica_does_not_use_yet_are_not_foreign_and_never_negative() -> None:
    (gpu,) = NvmlDevices(Nvml(2 * GIB, []), "0").report({"GPU-aaa": 3 * GIB})
    assert gpu.foreign_bytes == 0


@pytest.mark.parametrize(
    ("links", "linked"),
    [
        ({}, [(), (), ()]),
        ({0: [2, 2], 2: [0, None]}, [("GPU-abc",), (), ("GPU-aaa",)]),
        ({0: [1, None], 1: [0, 2], 2: [None, 1]}, [("GPU-bbb",), ("GPU-aaa", "GPU-abc"), ("GPU-bbb",)]),
        ({0: [SWITCH] * 18, 1: [SWITCH], 2: [None]}, [("GPU-bbb",), ("GPU-aaa",), ()]),
    ],
    ids=["none", "a pair, one link down", "a chain", "a switch and a GPU that is off it"],
)
def test_gpus_are_linked_directly_or_over_switches(
    links: dict[int, list[int | str | None]], linked: list[tuple[str, ...]]
) -> None:
    assert [gpu.linked for gpu in NvmlDevices(Nvml(links=links), None).report({})] == linked


def test_gpus_are_near_that_pcie_switches_alone_join() -> None:
    nvml = Nvml()
    assert [gpu.near for gpu in NvmlDevices(nvml, None).report({})] == [(), (), ()]
    single, bridge = nvml.NVML_TOPOLOGY_SINGLE, nvml.NVML_TOPOLOGY_HOSTBRIDGE
    nvml.ancestors = {frozenset({0, 1}): single, frozenset({0, 2}): bridge, frozenset({1, 2}): nvml.NVML_TOPOLOGY_NODE}
    assert [gpu.near for gpu in NvmlDevices(nvml, None).report({})] == [("GPU-bbb",), ("GPU-aaa",), ()]
    nvml.ancestors[frozenset({0, 2})] = nvml.NVML_TOPOLOGY_MULTIPLE
    assert [gpu.near for gpu in NvmlDevices(nvml, "0,2").report({})] == [("GPU-abc",), ("GPU-aaa",)]


def test_gpus_that_this_worker_does_not_see_are_not_linked() -> None:
    (gpu,) = NvmlDevices(Nvml(links={0: [1, SWITCH], 1: [0, SWITCH]}), "0").report({})
    assert gpu.linked == ()


def test_utilisation_is_the_share_of_the_last_two_minutes_at_which_a_gpu_was_above_one_percent() -> None:
    nvml, clock = Nvml(), iter((0.0, 60.0, 100.0, 110.0, 130.0, 400.0))
    devices = NvmlDevices(nvml, "0", now_s=lambda: next(clock))
    shares: list[float | None] = []
    for percent in (100, 1, 2, 0, 50, 0):
        nvml.percent = percent
        shares += [gpu.utilisation for gpu in devices.report({})]
    assert shares == [1.0, 1 / 2, 2 / 3, 2 / 4, 2 / 4, 0.0]


def test_utilisation_that_the_driver_does_not_tell_is_not_known() -> None:
    nvml = Nvml()
    nvml.percent = None
    assert [gpu.utilisation for gpu in NvmlDevices(nvml, "0").report({})] == [None]


def test_a_cpu_device_was_busy_while_a_replica_on_it_generated() -> None:
    clock = iter((0.0, 0.0, 10.0, 10.0))
    devices = CpuDevices("n1", ((0, GIB), (1, GIB)), threads_per_stage=1, now_s=lambda: next(clock))
    assert [g.utilisation for g in devices.report({}, {"n1/cpu:1"})] == [0.0, 1.0]
    assert [g.utilisation for g in devices.report({})] == [0.0, 0.5]


def test_a_gpu_that_falls_off_the_bus_is_no_longer_reported_and_the_others_are() -> None:
    nvml = Nvml()
    devices = NvmlDevices(nvml, None)
    nvml.lost = {1}
    assert [gpu.id for gpu in devices.report({})] == ["GPU-aaa", "GPU-abc"]
    nvml.lost = set()
    assert len(devices.report({})) == 3
    nvml.lost = {0, 1, 2}
    with pytest.raises(Nvml.NVMLError):
        devices.report({})


@pytest.mark.parametrize(("nvml", "visible"), [(Nvml(driver=False), None), (Nvml(), "")])
def test_a_node_without_gpus_does_not_start_and_says_what_to_declare(nvml: Nvml, visible: str | None) -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_DEVICES"):
        NvmlDevices(nvml, visible)


def test_tensorrt_llm_on_cpu_devices_is_refused() -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_ENGINE=trtllm"):
        find_devices(Settings.from_env({"MAVERIQ_ENGINE": "trtllm", "MAVERIQ_DEVICES": "cpu:0=1GiB"}))


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
