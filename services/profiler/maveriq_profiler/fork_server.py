"""A fork server: forks a process for each order, which has at once whatever this one has imported.

python -m maveriq_profiler.fork_server CONTROL_FD MODULE...   imports the modules, then hears the socket (children.py)

It has one thread and has never touched a GPU, for neither threads nor CUDA survive a fork. An order comes as a socket
of its own over the first one: two lines, a module and what its `main` is given. The child writes lines to that socket,
and this process, once the child is dead, how it ended. Whoever shuts down the other end has the child killed.
"""

import gc
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import wait
from typing import IO, NoReturn

from maveriq_profiler.exit_status import END, ExitStatus

_WORDS_BYTES = 16_384  # of the end of what a child said, in which its last line is


@dataclass(frozen=True, slots=True)
class Order:
    """In the child: what it is to do."""

    module: str
    given: str
    connection: socket.socket
    server_fd: int
    """Ends with the process that forked this one."""

    def carry_out(self) -> None:
        threading.Thread(target=self._end_with_server, daemon=True).start()
        with self.connection.makefile("w") as answers:
            import_module(self.module).main(self.given, answers)

    def _end_with_server(self) -> NoReturn:
        os.read(self.server_fd, 1)
        os._exit(1)


@dataclass(slots=True, eq=False)
class _Child:
    pid: int
    connection: socket.socket
    said: IO[bytes]
    """Its standard error, in a file without a name."""
    wanted: bool = True

    def kill(self) -> None:
        self.wanted = False
        os.kill(self.pid, signal.SIGKILL)

    def tell_end(self, status: int) -> None:
        end = os.fstat(self.said.fileno()).st_size
        tail = os.pread(self.said.fileno(), _WORDS_BYTES, max(0, end - _WORDS_BYTES))
        ended = ExitStatus(code=os.waitstatus_to_exitcode(status), words=last_words(tail))
        with suppress(OSError):  # nobody waits for it any more
            self.connection.sendall(END + ended.model_dump_json().encode() + b"\n")
            self.connection.shutdown(socket.SHUT_RDWR)  # stages of the child's may hold it open for a moment
        self.close()

    def close(self) -> None:
        self.connection.close()
        self.said.close()


class ForkServer:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: list[_Child] = []
        self._server_fd, self._alive_fd = os.pipe()  # to read, in each child, and never written to
        self._woken, self._wakes = socket.socketpair()
        for each in (self._woken, self._wakes):
            each.setblocking(False)
        signal.signal(signal.SIGCHLD, _heeded)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)

    def serve(self) -> Order | None:
        """Returns in each child, with its order; in this process None, when nobody is left to order anything."""
        while True:
            ours = [self._control, self._woken, *(child.connection for child in self._children if child.wanted)]
            ready = wait(ours)
            for child in self._children:
                if child.connection in ready:
                    child.kill()
            if self._woken in ready:
                self._reap()
            if self._control in ready:
                _, given, _, _ = socket.recv_fds(self._control, 1, 1)
                if not given:
                    for child in self._children:
                        child.kill()
                    return None
                if (order := self._begin(socket.socket(fileno=given[0]))) is not None:
                    return order

    def _begin(self, connection: socket.socket) -> Order | None:
        with connection.makefile(newline="\n") as lines:
            module, given = lines.readline(), lines.readline()
        if not given.endswith("\n"):
            connection.close()  # it was given up before it was said
            return None
        said = tempfile.TemporaryFile()  # noqa: SIM115
        pid = os.fork()
        if pid:
            self._children.append(_Child(pid, connection, said))
            return None
        self._leave(said)
        return Order(module.strip(), given, connection, self._server_fd)

    def _leave(self, said: IO[bytes]) -> None:
        """In a child: nothing of the parent's is kept."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (self._control, self._woken, self._wakes):
            each.close()
        for child in self._children:
            child.close()
        os.close(self._alive_fd)
        os.dup2(said.fileno(), 1)  # whatever libraries print
        os.dup2(said.fileno(), 2)
        said.close()

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        for child in tuple(self._children):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._children.remove(child)
                child.tell_end(status)


def _heeded(number: int, frame: object) -> None:
    """A signal with a handler is written to the wake-up socket, which is all that is wanted of it."""


def last_words(said: bytes) -> str:
    """The end of a traceback names what went wrong."""
    lines = (line.removeprefix("[rank0]:").strip() for line in said.decode(errors="replace").splitlines())
    return next((line for line in reversed([*lines]) if line and not line.startswith("USDT:")), "")


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        with suppress(ImportError, OSError, RuntimeError):  # who needs it will say what is missing
            import_module(name)
    gc.collect()
    gc.freeze()  # a child's collections would write to all of it, and so copy it
    control.sendall(b"+")  # from now on orders are begun at once
    order = ForkServer(control).serve()
    if order is not None:
        order.carry_out()


if __name__ == "__main__":
    main()
