"""Masks what an operator who reads a log need not see: secrets, addresses and numbers of people and accounts.

Pure. Numbers are masked only where their check digits are right (identity cards of China, bank cards, IBAN), so that an
order number stays readable. Full-width digits and signs count as their ASCII twins. Masking is a courtesy to people
whose words are logged, not a proof that nothing is left: who must be sure chooses ``metadata`` or ``sealed``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date

_WIDTH = str.maketrans({0xFF01 + offset: 0x21 + offset for offset in range(94)} | {0x3000: 0x20})
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999
_CHECKS = "10X98765432"


def _always(_: str) -> bool:
    return True


def is_id_card(text: str) -> bool:
    """An 18-digit identity number of China: a real day of birth and the right check character (GB 11643-1999)."""
    try:
        date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, text[:17], strict=True))
    return _CHECKS[total % 11] == text[17].upper()


def is_bank_card(text: str) -> bool:
    """13 to 19 digits with the right Luhn digit (ISO/IEC 7812-1)."""
    digits = [int(each) for each in text if each.isdigit()]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and sum(doubled) % 10 == 0 and any(digits)


def is_iban(text: str) -> bool:
    """ISO 13616: the rearranged number is 1 modulo 97."""
    bare = text.replace(" ", "").upper()
    return int("".join(str(int(each, 36)) for each in bare[4:] + bare[:4])) % 97 == 1


_PEM = r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{0,20000}(?:-----END[A-Z -]{0,60})?"
_NAMES = "password|passwd|pwd|secret|token|api[_ -]?key|密码|口令"
_NAMED_SECRET = rf"(?i)(?:{_NAMES})[\"']?\s{{0,3}}(?:[:=]|\bis\b|是|为)\s{{0,3}}[\"']?([^\s\"',;，。；]{{3,}})"
# In this order: what may hold another kind inside it comes first. Where a pattern has a group, that is what is masked.
_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("private-key", re.compile(_PEM), _always),
    ("token", re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"), _always),
    ("token", re.compile(r"\b(?:csk_[A-Za-z0-9]+_|sk-|gh[pousr]_|xox[abprs]-|AKIA|glpat-|hf_|ms-)[\w-]{8,}"), _always),
    ("token", re.compile(r"(?i)\bbearer ([\w.~+/=-]{8,})"), _always),
    ("secret", re.compile(_NAMED_SECRET), _always),
    ("secret", re.compile(r"(?<=://)[^\s/:@]{1,100}:[^\s/@]{1,100}(?=@)"), _always),
    ("email", re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"), _always),
    ("id-card", re.compile(r"(?<![0-9A-Za-z])[1-9][0-9]{16}[0-9Xx](?![0-9A-Za-z])"), is_id_card),
    ("iban", re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"), is_iban),
    ("bank-card", re.compile(r"(?<![0-9])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])"), is_bank_card),
    ("phone", re.compile(r"(?<![0-9])(?:\+?86[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}(?![0-9])"), _always),
    ("phone", re.compile(r"(?<![0-9])0[0-9]{2,3}-[0-9]{7,8}(?![0-9])"), _always),
    ("phone", re.compile(r"(?<![0-9+])\+[1-9][0-9]{0,2}(?:[ ().-]{0,2}[0-9]){6,12}(?![0-9])"), _always),
    ("id-number", re.compile(r"(?<![0-9-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![0-9-])"), _always),
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
