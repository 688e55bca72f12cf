"""Pure: an answer's tokens in, the text that may be shown in; whole characters, nothing of a stop string."""

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are not yet a whole character
_MAX_UNFINISHED = 8  # tokens; a character has at most four bytes, so more than these never become one
_CONTEXT = 4  # tokens before a new one that settle how its text begins (spaces, joined characters)


class AnswerText:
    """Text of one answer as its tokens come."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._characters = Detokenizer(decode)
        self._stops = StopStrings(stops)

    def add(self, token_id: int) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string ended the answer."""
        return self._stops.add(self._characters.add(token_id))

    def finish(self) -> tuple[str, bool]:
        """What was held back, when the answer has ended otherwise."""
        text, stopped = self._stops.add(self._characters.finish())
        return (text, True) if stopped else (text + self._stops.finish(), False)


class Detokenizer:
    """Text of one answer as its tokens come: no character is given out before it is whole."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        """From here on tokens are decoded again: enough for the next one's text to come out as in the whole."""
        self._given = 0
        """Tokens whose text was given out."""
        self._prefix = ""
        """Text of the tokens from start to given."""

    def add(self, token_id: int) -> str:
        """The text that is certain now; '' while a character is unfinished."""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._start :])
        if text.endswith(_UNFINISHED) and len(self._ids) - self._given < _MAX_UNFINISHED:
            return ""
        return self._give(text)

    def finish(self) -> str:
        """What is left, unfinished characters included."""
        return self._give(self._decode(self._ids[self._start :]))

    def _give(self, text: str) -> str:
        new = text[len(self._prefix) :]
        self._given = len(self._ids)
        self._start = max(self._start, self._given - _CONTEXT)
        self._prefix = self._decode(self._ids[self._start :])
        return new


class StopStrings:
    """Holds back text that may be the beginning of a stop string until that is decided."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held: str = ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string ended the answer (it is not shown itself)."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was held back: the answer ended otherwise."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
