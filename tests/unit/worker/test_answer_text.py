"""Text of an answer as its tokens come."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from maveriq_worker.answer_text import AnswerText, Detokenizer


def decode(token_ids: Sequence[int]) -> str:
    """A byte-level vocabulary: one token a byte."""
    return bytes(token_ids).decode(errors="replace")


def shown(text: str, *stops: str) -> tuple[list[str], bool]:
    answer = AnswerText(decode, stops)
    pieces: list[str] = []
    for byte in text.encode():
        piece, stopped = answer.add(byte)
        pieces.append(piece)
        if stopped:
            return pieces, True
    piece, stopped = answer.finish()
    return [*pieces, piece], stopped


@given(st.text(max_size=40))
def test_the_pieces_are_the_whole_text(text: str) -> None:
    pieces, _ = shown(text)
    assert "".join(pieces) == text


def test_no_piece_holds_part_of_a_character() -> None:
    pieces, _ = shown("né 🙂 漢")
    assert [piece for piece in pieces if piece] == list("né 🙂 漢")


def test_bytes_that_never_become_a_character_are_shown_in_the_end() -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.add(0xF0) for _ in range(30)] + [detokenizer.finish()]
    assert "".join(pieces) == decode([0xF0] * 30)


def test_a_stop_string_ends_the_answer_and_is_not_shown() -> None:
    pieces, stopped = shown("one. two END three", "END")
    assert ("".join(pieces), stopped) == ("one. two ", True)


def test_text_that_may_begin_a_stop_string_is_held_back_until_that_is_decided() -> None:
    pieces, stopped = shown("aENaENDb", "END")
    assert (pieces, stopped) == (["a", "", "", "ENa", "", "", ""], True)


def test_what_only_began_like_a_stop_string_is_shown_in_the_end() -> None:
    pieces, stopped = shown("so EN", "END")
    assert ("".join(pieces), stopped) == ("so EN", False)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_the_answer_is_the_text_before_its_first_stop_string(text: str, stops: list[str]) -> None:
    pieces, stopped = shown(text, *stops)
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert stopped is bool(ends)
    if not ends:
        assert "".join(pieces) == text
    else:
        seen = text[: ends[0]]
        assert "".join(pieces) == seen[: min(at for stop in stops if (at := seen.find(stop)) >= 0)]
