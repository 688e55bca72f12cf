"""Text to tokens and tokens to text: a checkpoint's tokenizer and its chat template."""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from maveriq.contracts import ErrorCode
from maveriq_worker.engine import Generation, RequestRefused

_LOADING = Lock()  # transformers imports its parts as they are named, which two threads may not do at once


class TokenizerFailed(Exception):
    """The checkpoint has no tokenizer that works; the message says what to do."""


def load_prompts(checkpoint: Path) -> "Prompts":
    """Takes seconds (it imports transformers): not for the event loop.

    Raises:
        TokenizerFailed
    """
    try:
        with _LOADING:
            return Prompts(*_read(checkpoint))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise TokenizerFailed(
            f"the tokenizer of {checkpoint} does not load ({error}); put tokenizer.json and its configuration there"
        ) from error


def _read(checkpoint: Path) -> tuple[Any, int]:
    """Tokenizer and size of the vocabulary. No name here is the tokenizer's: exceptions that transformers handled keep
    this frame, and with it what it names, until Python looks for cycles, which it does rarely here.
    """
    from transformers import AutoConfig, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(checkpoint).get_text_config()
    return AutoTokenizer.from_pretrained(checkpoint), config.vocab_size


class Prompts:
    """One checkpoint's tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self._longest_chars = max(map(len, self._tokenizer.get_vocab()))
        self.token_text = token_texts(self._tokenizer)

    def least_tokens(self, generation: Generation) -> int:
        """That the prompt has at any rate: a huge one need not be tokenised, which takes seconds, to be refused."""
        return generation.num_chars // self._longest_chars

    def encode(self, generation: Generation) -> tuple[int, ...]:
        """The prompt's tokens.

        Raises:
            RequestRefused: the tokenizer, its template or the vocabulary does not take this prompt.
        """
        if generation.messages is not None:
            ids = self._render(generation)
        elif isinstance(generation.prompt, str):
            ids = tuple(self._tokenizer(generation.prompt)["input_ids"])
        else:
            ids = tuple(generation.prompt or ())
            self._check_vocabulary(ids)
        if not ids:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST, field_of(generation), "it has no tokens", "give a text that is not empty"
            )
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _render(self, generation: Generation) -> tuple[int, ...]:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST, "messages", "this model has no chat template", "send a prompt instead"
            )
        messages = [{"role": message.role, "content": message.content} for message in generation.messages or ()]
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST, "messages", f"the model's chat template refuses them: {error}",
                "change the roles or their order",
            ) from error  # fmt: skip
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _check_vocabulary(self, ids: tuple[int, ...]) -> None:
        wrong = next((position for position, id_ in enumerate(ids) if not 0 <= id_ < self.vocab_size), None)
        if wrong is not None:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST, f"prompt[{wrong}]",
                f"token id {ids[wrong]} is not in the vocabulary",
                f"give ids from 0 to {self.vocab_size - 1}, made with this model's tokenizer",
            )  # fmt: skip


def token_texts(tokenizer: Any) -> Callable[[int], str]:
    """One token alone, special ones included: as log probabilities name it.

    Not a method: its cache would be a cycle, and keep the tokenizer likewise.
    """

    @lru_cache(maxsize=16_384)
    def text_of(token_id: int) -> str:
        text: str = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        return text

    return text_of


def field_of(generation: Generation) -> str:
    return "prompt" if generation.messages is None else "messages"
