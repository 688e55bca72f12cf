"""What this worker was told by its environment."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maveriq import agreed_settings as agreed
from maveriq.agreed_settings import EngineName
from maveriq.contracts import NODE_PATTERN
from maveriq.settings import num_bytes, number, read


@dataclass(frozen=True, slots=True)
class Settings:
    node: str
    engine: EngineName
    cpu_devices: tuple[tuple[int, int], ...]
    """(number, total bytes) of each declared CPU device; empty: the GPUs that NVML sees."""
    cache_dir: Path
    threads_per_stage: int
    report_s: float
    visible_gpus: str | None
    """CUDA_VISIBLE_DEVICES as given; None: every GPU of the machine."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Raises BadSetting, which names the variable."""
        return cls(
            node=read(env, "MAVERIQ_NODE", _node, _own_name()),
            engine=agreed.engine(env),
            cpu_devices=read(env, "MAVERIQ_DEVICES", cpu_devices, ()),
            cache_dir=agreed.cache_dir(env),
            threads_per_stage=agreed.threads_per_stage(env),
            report_s=read(env, "MAVERIQ_REPORT_S", number(0.01, 3600, "seconds"), 10.0),
            visible_gpus=env.get("CUDA_VISIBLE_DEVICES"),
        )


def cpu_devices(text: str) -> tuple[tuple[int, int], ...]:
    """`nvml` as nothing; `cpu:0=300MiB,cpu:1=220MiB` as ((0, 314572800), (1, 230686720)).

    Raises:
        ValueError: neither of these, or a number given twice.
    """
    if text.strip() == "nvml":
        return ()
    found: dict[int, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*cpu:(\d+)\s*=(.*)", part)
        try:
            ordinal, size_bytes = int(match[1] if match else ""), num_bytes(match[2] if match else "")
        except ValueError as error:
            words = "expected nvml, or CPU devices with their sizes, e.g. cpu:0=300MiB,cpu:1=220MiB"
            raise ValueError(words) from error
        if ordinal in found:
            raise ValueError(f"cpu:{ordinal} is given twice")
        if size_bytes == 0:
            raise ValueError(f"cpu:{ordinal} has no bytes")
        found[ordinal] = size_bytes
    return tuple(found.items())


def _own_name() -> str:
    """The host's name as one word of a routing key."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()).lstrip("_-") or "node"


def _node(text: str) -> str:
    """Hosts' names have dots, which part the words of a routing key: dashes stand for them."""
    word = text.replace(".", "-")
    if re.match(NODE_PATTERN, word) is None:
        raise ValueError("expected letters, digits, dots, - and _, beginning with a letter or digit")
    return word
