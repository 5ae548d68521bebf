"""Stop strings: the result does not depend on how the text was cut, and none of it is shown."""

from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatsvc.chat.stopping import StopMatcher


def run(pieces: list[str], stop: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stop)
    text = ""
    for piece in pieces:
        text += matcher.feed(piece)
        if matcher.stopped:
            return text, True
    return text + matcher.flush(), False


def test_a_stop_string_across_pieces_is_found_and_not_shown():
    assert run(["Hello, wo", "r", "ld! More"], ["world"]) == ("Hello, ", True)


def test_what_might_begin_a_stop_string_is_held_back_and_given_later():
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.feed("answer\n\nUse") == "answer"
    assert matcher.feed("ful") == "\n\nUseful"
    assert matcher.feed("\n") == ""
    assert matcher.flush() == "\n"


def test_without_stop_strings_nothing_is_held_back():
    assert StopMatcher([]).feed("text") == "text"


def test_of_two_stop_strings_the_one_that_is_complete_first_counts():
    assert run(["abcd"], ["abcd", "bc"]) == ("a", True)
    assert run(["abcd"], ["bcd", "abcd"]) == ("", True)


@settings(max_examples=400, deadline=None)
@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 12), max_size=5),
)
@example("abab", ["bb"], [1, 2, 3])
def test_the_result_does_not_depend_on_the_pieces(text, stop, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert run(pieces, stop) == run(list(text), stop) == run([text], stop)


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4))
def test_what_is_shown_never_holds_a_stop_string(text, stop):
    shown, stopped = run(list(text), stop)
    assert not any(one in shown for one in stop)
    assert stopped == any(one in text for one in stop)
    assert text.startswith(shown)
