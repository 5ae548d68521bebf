"""How the time of a call grows with its input, and inputs that make a regular expression slow.

The time is processor time of this thread, so other load on the machine does not count. A call is linear when four times
the input takes less than nine times as long; quadratic growth takes sixteen times as long.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from re import _parser
from typing import Any

SMALL = 8_192
_MAX_RATIO = 9.0
_NOTICED_S = 0.02  # below this a measurement is noise
_LIMIT_S = 1.0
_LENGTHS = (1, 2, 3, 4, 6, 8, 11, 16, 24, 40)


class TooSlow(Exception):
    """The call was stopped."""


def growth(call: Callable[[Any], object], text: Callable[[int], Any] = int, *, small: int = SMALL) -> str | None:
    """What is wrong with how ``call(text(size))`` grows, or None. A first bad measurement is taken again.

    Making the text is not measured.
    """
    found, large = None, 4 * small
    given = {size: text(size) for size in (small // 64, small, large)}
    for _ in range(2):
        try:
            with _limited():
                call(given[small // 64])  # imports and caches
                short_s, long_s = _seconds(call, given[small]), _seconds(call, given[large])
        except TooSlow:
            return f"stopped after {_LIMIT_S} s"
        if long_s < _NOTICED_S or long_s < _MAX_RATIO * short_s:
            return None
        found = f"{short_s:.4f} s for {small}, {long_s:.4f} s for {large}"
    return found


def _seconds(call: Callable[[Any], object], given: Any) -> float:
    started = time.thread_time()
    call(given)
    return time.thread_time() - started


@contextmanager
def _limited() -> Iterator[None]:
    """Stop what runs too long: ``re`` looks for signals while it searches."""

    def stop(_number: int, _frame: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(
            signal.SIGVTALRM, signal.SIG_IGN
        )  # forgets one that is pending; the default would end the process
        signal.signal(signal.SIGVTALRM, before)


def attacks(pattern: re.Pattern[str]) -> Iterator[Callable[[int], str]]:
    """Makers of text of a size that nearly matches in many places, or in many ways.

    A text that the pattern matches is cut off at every length; what is left is repeated, or its last character is, so
    that the pattern begins at every repetition and finds out late that it does not match.
    """
    parsed = _parser.parse(pattern.pattern, pattern.flags)
    examples = {_example(parsed, choice) for choice in range(8)}
    starts = {example[:length] for example in examples for length in _LENGTHS}
    for start in sorted(starts - {""}):
        yield lambda size, start=start: (start * size)[:size] + "\n"
        yield lambda size, start=start: start + start[-1] * size + "\n"


def _example(tokens: object, choice: int) -> str:
    """A text that the parsed pattern (mostly) matches; ``choice`` picks among alternatives."""
    return "".join(_example_of(str(name), argument, choice) for name, argument in tokens)  # type: ignore[attr-defined]


def _example_of(name: str, argument: object, choice: int) -> str:
    match name:
        case "LITERAL":
            return chr(argument)  # type: ignore[call-overload]
        case "NOT_LITERAL" | "ANY":
            return "a"
        case "IN":
            return _member(argument, choice)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, _, inner = argument  # type: ignore[misc]
            return _example(inner, choice) * max(int(least), 1)
        case "SUBPATTERN":
            return _example(argument[-1], choice)  # type: ignore[index]
        case "ATOMIC_GROUP":
            return _example(argument, choice)
        case "BRANCH":
            branches = argument[1]  # type: ignore[index]
            return _example(branches[choice % len(branches)], choice // len(branches))
        case "ASSERT":
            direction, inner = argument  # type: ignore[misc]
            return _example(inner, choice) if direction < 0 else ""
        case _:
            return ""


_CATEGORIES = {"CATEGORY_DIGIT": "1", "CATEGORY_SPACE": " ", "CATEGORY_WORD": "a"}


def _member(members: object, choice: int) -> str:
    """A character of a set; of a negated set one that is hardly ever in it."""
    members = list(members)  # type: ignore[call-overload]
    if str(members[0][0]) == "NEGATE":
        return "a"
    name, argument = members[choice % len(members)]
    if str(name) == "RANGE":
        return chr(argument[0])
    return chr(argument) if str(name) == "LITERAL" else _CATEGORIES.get(str(argument), "-")
