"""Which part of a chunk is new. Pure: chunks in as they arrive, each token once and in order out."""

from collections.abc import Sequence

from maveriq.contracts import Chunk


class Ordering:
    """The chunks of one request over all its attempts.

    A later attempt yields the same tokens and the same text from the start: what was yielded already is
    cut off, by tokens and by characters. Chunks that came too early are held until the gap is filled.
    """

    __slots__ = ("_attempt", "_attempt_chars", "_attempt_tokens", "_chars", "_held", "_tokens")

    def __init__(self) -> None:
        self._attempt = 0
        self._attempt_tokens = 0  # of this attempt, taken in order so far
        self._attempt_chars = 0
        self._tokens = 0  # yielded, over all attempts
        self._chars = 0
        self._held: dict[int, Chunk] = {}

    @property
    def has_gap(self) -> bool:
        """Whether chunks are held back because an earlier one is missing."""
        return bool(self._held)

    def take(self, chunk: Chunk) -> Sequence[Chunk]:
        """What can be yielded now that `chunk` is here, in order."""
        if chunk.attempt < self._attempt:
            return ()  # a worker that was given up and does not know it yet
        if chunk.attempt > self._attempt:
            self._attempt = chunk.attempt
            self._attempt_tokens = self._attempt_chars = 0
            self._held.clear()
        if chunk.index > self._attempt_tokens:
            self._held[chunk.index] = chunk
            return ()
        if chunk.index < self._attempt_tokens:
            return ()  # seen already in this attempt
        new = self._cut(chunk)
        if not self._held:
            return (new,) if new is not None else ()
        ready = [new] if new is not None else []
        while (held := self._held.pop(self._attempt_tokens, None)) is not None:
            if (new := self._cut(held)) is not None:
                ready.append(new)
        return ready

    def _cut(self, chunk: Chunk) -> Chunk | None:
        """The next chunk of this attempt without what an earlier attempt yielded; None if nothing is left."""
        seen_tokens = max(0, self._tokens - self._attempt_tokens)
        seen_chars = max(0, self._chars - self._attempt_chars)
        self._attempt_tokens += len(chunk.token_ids)
        self._attempt_chars += len(chunk.text)
        self._tokens = max(self._tokens, self._attempt_tokens)
        self._chars = max(self._chars, self._attempt_chars)
        if not seen_tokens and not seen_chars:
            return chunk
        token_ids, text = chunk.token_ids[seen_tokens:], chunk.text[seen_chars:]
        if not token_ids and not text and chunk.finish_reason is None:
            return None
        logprobs = chunk.logprobs[seen_tokens:] if chunk.logprobs is not None else None
        index = self._tokens - len(token_ids)
        return chunk.model_copy(update={"index": index, "token_ids": token_ids, "text": text, "logprobs": logprobs})
