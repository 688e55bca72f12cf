"""How a measuring process ended, as the fork server that made it says it."""

from maveriq.contracts import Value

END = b"\x04"  # begins the last line of an order's answers; no JSON has it, so a line cut short by a kill is told apart


class ExitStatus(Value):
    code: int | None
    """As the shell has it, of a signal its negative number. None: whoever knew has ended too."""
    words: str = ""
    """The last line that it wrote to its standard error."""

    @property
    def told(self) -> str:
        if self.code is None:
            return "the process that starts measurements was killed, as the kernel does where memory ends"
        killed = " (-9: killed, as the kernel does where memory ends)" if self.code == -9 else ""
        return f"the measuring process ended with code {self.code}{killed}{': ' + self.words if self.words else ''}"
