"""The node's devices: GPUs through NVML, or declared shares of the CPU's memory."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import structlog

from maveriq.contracts import Gpu
from maveriq.settings import BadSetting
from maveriq_worker.descendants import descendants
from maveriq_worker.engine import Device
from maveriq_worker.nvlinks import nvlinks
from maveriq_worker.pcie import near
from maveriq_worker.settings import Settings
from maveriq_worker.utilisation import Utilisation

log = structlog.get_logger()


class Devices(Protocol):
    def find(self, gpu: str) -> Device | None:
        """The device of this id; None where this node has none."""
        ...

    def report(self, held_bytes: Mapping[str, int], busy: Collection[str] = ()) -> tuple[Gpu, ...]:
        """What each device is and what is taken of it, now; how busy it was when this was asked before.

        Args:
            held_bytes: by GPU id, what our own replicas hold; counted as ours where the driver
                does not tell whose bytes are whose.
            busy: ids of those whose replicas are generating; counts where no driver tells.
        """
        ...


class CpuDevices:
    """Declared, so nobody else can take of them."""

    def __init__(
        self, node: str, sizes_bytes: tuple[tuple[int, int], ...], threads_per_stage: int,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._now_s = now_s
        self._utilisation = Utilisation()
        self._found = {
            f"{node}/cpu:{number}": Device(f"{node}/cpu:{number}", "cpu", number) for number, _ in sizes_bytes
        }
        self._gpus = tuple(
            Gpu(id=f"{node}/cpu:{number}", gpu_type=f"cpu-{threads_per_stage}t", total_bytes=size, foreign_bytes=0)
            for number, size in sizes_bytes
        )

    def find(self, gpu: str) -> Device | None:
        return self._found.get(gpu)

    def report(self, held_bytes: Mapping[str, int], busy: Collection[str] = ()) -> tuple[Gpu, ...]:
        return tuple(self._with_utilisation(gpu, busy) for gpu in self._gpus)

    def _with_utilisation(self, gpu: Gpu, busy: Collection[str]) -> Gpu:
        share = self._utilisation.read(gpu.id, self._now_s(), float(gpu.id in busy))
        return gpu.model_copy(update={"utilisation": share})


class NvmlDevices:
    """Every GPU that CUDA_VISIBLE_DEVICES leaves to this process, by its UUID.

    Ordinals are those of CUDA_DEVICE_ORDER=PCI_BUS_ID, which `__main__` sets: NVML counts by bus too.
    """

    def __init__(self, nvml: Any, visible: str | None, now_s: Callable[[], float] = time.monotonic) -> None:
        """Raises BadSetting: no driver, no GPU, or none is left visible."""
        self._nvml, self._now_s = nvml, now_s
        self._utilisation = Utilisation()
        self._lost: set[str] = set()
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            by_uuid = {str(nvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
        except nvml.NVMLError as error:
            raise BadSetting(
                f"MAVERIQ_DEVICES: NVML cannot read this machine's GPUs ({error}); "
                "install the NVIDIA driver, or declare CPU devices, e.g. MAVERIQ_DEVICES=cpu:0=4GiB"
            ) from error
        ids = visible_gpus(tuple(by_uuid), visible)
        if not ids:
            raise BadSetting("MAVERIQ_DEVICES: no GPU is visible; set CUDA_VISIBLE_DEVICES, or declare CPU devices")
        self._handles = {gpu: by_uuid[gpu] for gpu in ids}
        self._found = {gpu: Device(gpu, "cuda", ordinal) for ordinal, gpu in enumerate(ids)}
        self._linked, self._near = nvlinks(nvml, self._handles), near(nvml, self._handles)

    def find(self, gpu: str) -> Device | None:
        return self._found.get(gpu)

    def report(self, held_bytes: Mapping[str, int], busy: Collection[str] = ()) -> tuple[Gpu, ...]:
        """Without GPUs that the driver can no longer read. Raises NVMLError: it can read none."""
        ours = frozenset(descendants(os.getpid())) | {os.getpid()}
        found: list[Gpu] = []
        for gpu in self._handles:
            try:
                found.append(self._report_one(gpu, ours, held_bytes.get(gpu, 0)))
            except self._nvml.NVMLError as error:
                if gpu not in self._lost:
                    log.error("GPU cannot be read and is no longer reported", gpu=gpu, error=str(error))
                self._lost.add(gpu)
                if len(self._lost) == len(self._handles):
                    raise
            else:
                self._lost.discard(gpu)
        return tuple(found)

    def _report_one(self, gpu: str, ours: frozenset[int], held_bytes: int) -> Gpu:
        handle = self._handles[gpu]
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        used_bytes = int(memory.used)
        own_bytes = self._own_bytes(handle, ours, held_bytes)
        return Gpu(
            id=gpu,
            gpu_type=str(self._nvml.nvmlDeviceGetName(handle)),
            total_bytes=int(memory.total),
            foreign_bytes=max(0, used_bytes - (held_bytes if own_bytes is None else own_bytes)),
            own_bytes=own_bytes,
            utilisation=self._busy_share(gpu, handle),
            linked=self._linked[gpu],
            near=self._near[gpu],
        )

    def _own_bytes(self, handle: Any, ours: frozenset[int], held_bytes: int) -> int | None:
        """What our processes take; None: in a container NVML may give the host's pids, or no sizes."""
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._nvml.NVMLError:
            return None
        own = [one.usedGpuMemory for one in running if one.pid in ours]
        if None in own or (not own and held_bytes):
            return None
        return int(sum(own))

    def _busy_share(self, gpu: str, handle: Any) -> float | None:
        try:
            percent = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        except self._nvml.NVMLError:  # as of a MIG device
            return None
        return self._utilisation.read(gpu, self._now_s(), percent / 100)


def visible_gpus(uuids: tuple[str, ...], visible: str | None) -> tuple[str, ...]:
    """The GPUs that CUDA shows, in its order.

    Args:
        uuids: all, by PCI bus.
        visible: CUDA_VISIBLE_DEVICES: ordinals, UUIDs or the beginnings of UUIDs; as CUDA does,
            the first that names no GPU hides those after it.
    """
    if visible is None:
        return uuids
    shown: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdecimal():
            named = uuids[int(entry) : int(entry) + 1]
        else:
            named = tuple(uuid for uuid in uuids if entry and uuid.startswith(entry))
        if len(named) != 1 or named[0] in shown:
            break
        shown.append(named[0])
    return tuple(shown)


def find_devices(settings: Settings) -> Devices:
    """Raises BadSetting where there are none."""
    if settings.cpu_devices:
        if settings.engine == "trtllm":
            raise BadSetting("MAVERIQ_ENGINE=trtllm runs on NVIDIA GPUs alone; give MAVERIQ_DEVICES=nvml")
        return CpuDevices(settings.node, settings.cpu_devices, settings.threads_per_stage)
    import pynvml

    return NvmlDevices(pynvml, settings.visible_gpus)
