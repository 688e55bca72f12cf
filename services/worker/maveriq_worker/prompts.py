"""Text to tokens and tokens to text: a checkpoint's tokenizer and its chat template."""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence
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
            return Prompts(checkpoint)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise TokenizerFailed(
            f"the tokenizer of {checkpoint} does not load ({error}); put tokenizer.json and its configuration there"
        ) from error


class Prompts:
    """One checkpoint's tokenizer."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self.vocab_size: int = AutoConfig.from_pretrained(checkpoint).get_text_config().vocab_size
        self._longest_chars = max(map(len, self._tokenizer.get_vocab()))
        self.token_text = lru_cache(maxsize=16_384)(self._token_text)

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

    def _token_text(self, token_id: int) -> str:
        """One token alone, special ones included: as log probabilities name it."""
        text: str = self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
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


def field_of(generation: Generation) -> str:
    return "prompt" if generation.messages is None else "messages"
