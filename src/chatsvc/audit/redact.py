"""Masks what an operator who reads a log need not see: secrets, addresses and numbers of people and accounts.

Pure. Numbers that have check digits (most identity numbers, bank cards, IBAN) are masked only where these are right, so
that an order number stays readable. Full-width digits and signs count as their ASCII twins. Masking is a courtesy to
people whose words are logged, not a proof that nothing is left: who must be sure chooses ``metadata`` or ``sealed``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from chatsvc.audit.id_numbers import ID_NUMBERS, always

_WIDTH = str.maketrans({0xFF01 + offset: 0x21 + offset for offset in range(94)} | {0x3000: 0x20})
_PEM = r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{0,20000}(?:-----END[A-Z -]{0,60})?"
_NAMES = "password|passwd|pwd|secret|token|api[_ -]?key|密码|口令"
_NAMED_SECRET = rf"(?i)(?:{_NAMES})[\"']?\s{{0,3}}(?:[:=]|\bis\b|是|为)\s{{0,3}}[\"']?([^\s\"',;，。；]{{3,}})"
# In this order: what may hold another kind inside it comes first. Where a pattern has a group, that is what is masked.
_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("private-key", re.compile(_PEM), always),
    ("token", re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"), always),
    ("token", re.compile(r"\b(?:csk_[A-Za-z0-9]+_|sk-|gh[pousr]_|xox[abprs]-|AKIA|glpat-|hf_|ms-)[\w-]{8,}"), always),
    ("token", re.compile(r"(?i)\bbearer ([\w.~+/=-]{8,})"), always),
    ("secret", re.compile(_NAMED_SECRET), always),
    ("secret", re.compile(r"(?<=://)[^\s/:@]{1,100}:[^\s/@]{1,100}(?=@)"), always),
    ("email", re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"), always),
    *(
        (kind, re.compile(rf"(?<![0-9A-Za-z-]){pattern}(?![0-9A-Za-z-])"), is_one)
        for kind, pattern, is_one in ID_NUMBERS
    ),
    ("phone", re.compile(r"(?<![0-9])(?:\+?86[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}(?![0-9])"), always),
    ("phone", re.compile(r"(?<![0-9])0[0-9]{2,3}-[0-9]{7,8}(?![0-9])"), always),
    ("phone", re.compile(r"(?<![0-9])[48]00[ -]?[0-9]{3}[ -]?[0-9]{4}(?![0-9])"), always),
    ("phone", re.compile(r"(?<![0-9+])(?:\+|00)[1-9][0-9]{0,2}(?:[ ().-]{0,2}[0-9]){6,12}(?![0-9])"), always),
    ("phone", re.compile(r"(?<![0-9])\(?[2-9][0-9]{2}(?:\) ?|[-. ])[2-9][0-9]{2}[-. ][0-9]{4}(?![0-9])"), always),
    ("phone", re.compile(r"(?<![0-9])\(?0[1-9][0-9]{1,4}\)?[ /-][0-9]{3,4}[ -]?[0-9]{3,4}(?![0-9])"), always),
)


def redact(text: str) -> str:
    """The text with every such thing replaced by its kind in brackets."""
    for kind, pattern, is_one in _KINDS:
        text = _masked(text, kind, pattern, is_one)
    return text


def _masked(text: str, kind: str, pattern: re.Pattern[str], is_one: Callable[[str], bool]) -> str:
    plain = text.translate(_WIDTH)  # one character for one: places agree
    parts, end = [], 0
    for match in pattern.finditer(plain):
        if is_one(match[0]):
            start, stop = match.span(pattern.groups)
            parts += [text[end:start], f"[{kind}]"]
            end = stop
    return "".join([*parts, text[end:]])
