"""What each tenant may hold, and what stays free on each node. Pure: settings in, limits and refusals in words out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from maveriq.contracts import NODE_PATTERN
from maveriq.settings import num_bytes
from maveriq_allocator.words import readable

ANY = "*"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # as `Intent.tenant`
_QUOTAS_WORDS = "give e.g. team-a=4gpus,80GiB;*=2gpus: GPUs, bytes or both for each tenant, * for all others"
_HEADROOM_WORDS = "give bytes a node, e.g. 4GiB, or by node node-1=8GiB;*=4GiB, * for all others"


@dataclass(frozen=True, slots=True)
class Quota:
    """None: any number."""

    bytes: int | None = None
    gpus: int | None = None
    """One for each deployment that holds some of it."""

    def told(self) -> tuple[str, str]:
        """For `commit.lua`."""
        return "" if self.bytes is None else str(self.bytes), "" if self.gpus is None else str(self.gpus)


@dataclass(frozen=True, slots=True)
class OverQuota:
    """A reservation was refused: it and what the tenant holds are more than the tenant may hold."""

    tenant: str
    quota: Quota
    what: str
    """`gpus` or `bytes`."""
    used: str
    wanted: str

    def nearer(self, other: "OverQuota | None") -> "OverQuota":
        """Whichever wants less of the same; the one before where they want different things."""
        if other is None:
            return self
        return self if self.what == other.what and int(self.wanted) < int(other.wanted) else other

    def __str__(self) -> str:
        if self.what == "gpus":
            return self._told(f"{self.used} GPU(s)", f"{self.wanted} GPU(s)", f"{self.quota.gpus} GPU(s)")
        return self._told(
            readable(int(self.used)), readable(int(self.wanted)), readable(self.quota.bytes or 0)
        )  # fmt: skip

    def _told(self, used: str, wanted: str, allowed: str) -> str:
        return (
            f"tenant {self.tenant} may hold {allowed} (MAVERIQ_QUOTAS): its other deployments hold {used} "
            f"and this one wants {wanted}; release one, ask for less or have the quota raised"
        )


@dataclass(frozen=True, slots=True)
class Quotas:
    by_tenant: Mapping[str, Quota] = field(default_factory=dict[str, Quota])
    others: Quota = Quota()

    def of(self, tenant: str) -> Quota:
        return self.by_tenant.get(tenant, self.others)


NO_QUOTA = Quotas()


@dataclass(frozen=True, slots=True)
class Headroom:
    """Bytes of each node, of its GPUs together, that nothing is placed into."""

    by_node: Mapping[str, int] = field(default_factory=dict[str, int])
    others_bytes: int = 0

    def of(self, node: str) -> int:
        return self.by_node.get(node, self.others_bytes)


NO_HEADROOM = Headroom()


def parse_quotas(text: str) -> Quotas:
    """`team-a=4gpus,80GiB;*=2gpus`. Raises ValueError."""
    found: dict[str, Quota] = {}
    for name, limits in _entries(text, _QUOTAS_WORDS):
        if name != ANY and not re.fullmatch(_NAME, name):
            raise ValueError(f"{name} cannot be a tenant; {_QUOTAS_WORDS}")
        found[name] = _quota(name, limits)
    others = found.pop(ANY, Quota())
    return Quotas(found, others)


def parse_headroom(text: str) -> Headroom:
    """`4GiB`, or `node-1=8GiB;*=4GiB`. Raises ValueError."""
    try:
        if "=" not in text:
            return Headroom(others_bytes=num_bytes(text))
        found = {name: num_bytes(size) for name, size in _entries(text, _HEADROOM_WORDS)}
    except ValueError as error:
        raise ValueError(f"{error}; {_HEADROOM_WORDS}") from error
    for name in found.keys() - {ANY}:
        if not re.fullmatch(NODE_PATTERN, name):
            raise ValueError(f"{name} cannot be a node; {_HEADROOM_WORDS}")
    others_bytes = found.pop(ANY, 0)
    return Headroom(found, others_bytes)


def _entries(text: str, words: str) -> list[tuple[str, str]]:
    entries: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or not name or not value:
            raise ValueError(f"{part} is not understood; {words}")
        if name in entries:
            raise ValueError(f"{name} is given twice")
        entries[name] = value
    return list(entries.items())


def _quota(name: str, text: str) -> Quota:
    gpus: int | None = None
    size: int | None = None
    for part in (part.strip() for part in text.split(",")):
        counted = re.fullmatch(r"(\d+)\s*gpus?", part, re.IGNORECASE)
        if counted and gpus is None:
            gpus = int(counted[1])
        elif not counted and size is None:
            try:
                size = num_bytes(part)
            except ValueError as error:
                raise ValueError(f"{part} of {name} is not understood; {_QUOTAS_WORDS}") from error
        else:
            raise ValueError(f"{name} has two of a kind: {text}")
    return Quota(size, gpus)
