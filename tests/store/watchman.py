"""A monitor of what Redis is told, command by command, with no code of ours: every moment is seen, none is sampled."""

import asyncio
import re
from collections import Counter
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_HELD = re.compile(r'\] "(HSET|HDEL)" "(maveriq:allocator:node:[^"]*:held)" ', re.IGNORECASE)
_WORD = re.compile(r'"([^"]*)"')
_LINE_BYTES = 2**26  # a plan's JSON, escaped


class Watchman:
    """Follows the `held` hashes from the writes themselves: MONITOR shows those of scripts too."""

    def __init__(self, url: str, totals: dict[str, int]) -> None:
        self.held: dict[str, dict[str, int]] = {}
        """By key, then field."""
        self.over: list[str] = []
        self.most: Counter[str] = Counter()
        """Bytes held at once, by GPU."""
        self.num_writes = 0
        self._totals = totals
        self._address = urlsplit(url)
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        reader, writer = await asyncio.open_connection(
            self._address.hostname, self._address.port or 6379, limit=_LINE_BYTES
        )
        writer.write(b"MONITOR\r\n")
        assert (await reader.readline()).strip() == b"+OK"
        self._watching = asyncio.create_task(self._watch(reader, writer))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watching is not None
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)

    def sums(self) -> Counter[str]:
        """Bytes by GPU, now."""
        total: Counter[str] = Counter()
        for fields in self.held.values():
            for field, num_bytes in fields.items():
                total[field.rpartition("|")[0]] += num_bytes
        return +total

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self._note(line.decode(errors="replace").rstrip())
        finally:
            writer.close()

    def _note(self, line: str) -> None:
        if '] "FLUSH' in line[:80].upper():
            self.held.clear()
        elif found := _HELD.search(line[:400]):
            fields = self.held.setdefault(found[2], {})
            words = _WORD.findall(line[found.end() :])
            if found[1].upper() == "HDEL":
                for field in words:
                    fields.pop(field, None)
                return
            self.num_writes += 1
            for field, num_bytes in zip(words[::2], words[1::2], strict=True):
                fields[field] = int(num_bytes)
                self._check(fields, field.rpartition("|")[0])

    def _check(self, fields: dict[str, int], gpu: str) -> None:
        total = sum(num_bytes for field, num_bytes in fields.items() if field.rpartition("|")[0] == gpu)
        self.most[gpu] = max(self.most[gpu], total)
        if total > self._totals[gpu]:
            self.over.append(f"{gpu} holds {total} of {self._totals[gpu]}: {fields}")
