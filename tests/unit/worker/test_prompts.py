"""Prompts and chats to tokens, with a tokenizer of one token a byte."""

import gc
import weakref
from pathlib import Path
from uuid import UUID

import pytest

from maveriq.contracts import ChatMessage, ErrorCode, Sampling
from maveriq_worker.engine import Generation, RequestRefused
from maveriq_worker.prompts import Prompts, TokenizerFailed, load_prompts
from tests.unit.worker.tiny_models import VOCABULARY, save_model, save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_model("Llama", folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Prompts:
    return load_prompts(folder)


def ask(prompt: str | tuple[int, ...] | None = None, *messages: tuple[str, str]) -> Generation:
    chat = tuple(ChatMessage.model_validate({"role": role, "content": content}) for role, content in messages)
    return Generation(UUID(int=1), prompt, chat or None, Sampling())


def test_text_comes_back_as_it_went_in(prompts: Prompts) -> None:
    assert prompts.decode(prompts.encode(ask("né 🙂"))) == "né 🙂"


def test_a_prompt_has_at_least_the_tokens_that_its_length_says(prompts: Prompts) -> None:
    for asked in (ask("né 🙂" * 9), ask(None, ("user", "hi" * 40)), ask((1, 2, 3))):
        assert prompts.least_tokens(asked) <= len(prompts.encode(asked))
    assert prompts.least_tokens(ask("x" * 10_000)) > 100


def test_a_chat_is_rendered_with_the_models_template(prompts: Prompts) -> None:
    token_ids = prompts.encode(ask(None, ("system", "be brief"), ("user", "hi")))
    assert prompts.decode(token_ids) == "<system>be brief<user>hi<assistant>"


def test_token_ids_are_taken_as_they_are(prompts: Prompts) -> None:
    assert prompts.encode(ask((5, VOCABULARY - 1, 0))) == (5, VOCABULARY - 1, 0)


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
def test_a_token_id_out_of_the_vocabulary_is_refused_with_its_place(prompts: Prompts, wrong: int) -> None:
    with pytest.raises(RequestRefused) as refused:
        prompts.encode(ask((1, 2, wrong)))
    assert (refused.value.error.code, refused.value.error.field) == (ErrorCode.INVALID_REQUEST, "prompt[2]")
    assert str(VOCABULARY - 1) in refused.value.error.remedy


def test_a_chat_that_the_template_refuses_is_refused_in_its_words(prompts: Prompts) -> None:
    with pytest.raises(RequestRefused, match="no tools here") as refused:
        prompts.encode(ask(None, ("tool", "42")))
    assert refused.value.error.field == "messages"


def test_a_model_without_a_template_takes_prompts_only(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    save_tokenizer(tmp_path, template=None)
    with pytest.raises(RequestRefused, match="send a prompt instead"):
        load_prompts(tmp_path).encode(ask(None, ("user", "hi")))


def test_a_checkpoint_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    with pytest.raises(TokenizerFailed, match=r"tokenizer\.json"):
        load_prompts(tmp_path)


def test_a_tokenizer_goes_as_soon_as_nobody_has_it(folder: Path) -> None:
    gc.disable()  # a worker looks for cycles rarely
    try:
        prompts = load_prompts(folder)
        prompts.token_text(5)
        gone = weakref.ref(prompts)
        del prompts
        assert gone() is None
    finally:
        gc.enable()
