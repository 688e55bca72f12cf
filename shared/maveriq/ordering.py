"""Which part of a chunk is new. Pure: chunks in as they arrive, each token once and in order out."""

from collections.abc import Sequence

from maveriq.contracts import Chunk


class Ordering:
    """The chunks of one request over all its attempts.

    A later attempt yields the same tokens and the same text from the start: what was yielded already is
    cut off, by tokens and by characters. Chunks that came too early are held until the gap is filled.
    """

    __slots__ = ("_attempt", "_chars", "_held", "_skip_chars", "_skip_tokens", "_tokens")

    def __init__(self) -> None:
        self._attempt = 0
        self._tokens = 0  # of this attempt, taken in order so far
        self._chars = 0
        self._skip_tokens = 0  # still to come in this attempt, but yielded by an earlier one
        self._skip_chars = 0
        self._held: dict[int, Chunk] = {}

    @property
    def has_gap(self) -> bool:
        """Whether chunks are held back because an earlier one is missing."""
        return bool(self._held)

    def take(self, chunk: Chunk) -> Sequence[Chunk]:
        """What can be yielded now that `chunk` is here, in order."""
        in_order = chunk.index == self._tokens and chunk.attempt == self._attempt and not self._held
        if in_order and not self._skip_chars and not self._skip_tokens:  # nearly always
            self._tokens += len(chunk.token_ids)
            self._chars += len(chunk.text)
            return (chunk,)
        if chunk.attempt < self._attempt:
            return ()  # a worker that was given up and does not know it yet
        if chunk.attempt > self._attempt:
            self._begin(chunk.attempt)
        if chunk.index > self._tokens:
            self._held[chunk.index] = chunk
            return ()
        if chunk.index < self._tokens:
            return ()  # seen already in this attempt
        new = self._next(chunk)
        if not self._held:
            return (new,) if new is not None else ()
        ready = [new] if new is not None else []
        while (held := self._held.pop(self._tokens, None)) is not None:
            if (new := self._next(held)) is not None:
                ready.append(new)
        return ready

    def _begin(self, attempt: int) -> None:
        self._attempt = attempt
        self._skip_tokens += self._tokens
        self._skip_chars += self._chars
        self._tokens = self._chars = 0
        self._held.clear()

    def _next(self, chunk: Chunk) -> Chunk | None:
        """The next chunk of this attempt without what an earlier attempt yielded; None if nothing is left."""
        self._tokens += len(chunk.token_ids)
        self._chars += len(chunk.text)
        if not self._skip_tokens and not self._skip_chars:
            return chunk
        token_ids, text = chunk.token_ids[self._skip_tokens :], chunk.text[self._skip_chars :]
        logprobs = chunk.logprobs[self._skip_tokens :] if chunk.logprobs is not None else None
        self._skip_tokens = max(0, self._skip_tokens - len(chunk.token_ids))
        self._skip_chars = max(0, self._skip_chars - len(chunk.text))
        if not token_ids and not text and chunk.finish_reason is None:
            return None
        index = self._tokens + self._skip_tokens - len(token_ids)
        return chunk.model_copy(update={"index": index, "token_ids": token_ids, "text": text, "logprobs": logprobs})
