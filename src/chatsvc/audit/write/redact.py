"""Masks what a reader of the log need not see: secrets, addresses and numbers of people and accounts.

Pure. Numbers that have check digits (most identity numbers, bank cards, IBAN) are masked only where these are right, so
that an order number stays readable. Full-width digits and signs are treated as their ASCII forms. Masking reduces what
leaks; it does not guarantee that nothing remains. For that, choose the level ``metadata`` or ``sealed``. Matching takes
time linear in the text: repeats are bounded, or a match can start only once in its run of characters.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

from chatsvc.audit.write.id_numbers import ID_NUMBERS, always

_WIDTH = str.maketrans({0xFF01 + offset: 0x21 + offset for offset in range(94)} | {0x3000: 0x20})
_PEM = r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{0,20000}(?:-----END[A-Z -]{0,60})?"
# Prefixes of keys and tokens of current services, from their documentation and public secret scanners.
_PREFIXES = (
    "csk_[A-Za-z0-9]{1,64}_",  # this service
    "sk-|sk_(?:live|test)_|rk_(?:live|test)_|pk_live_|whsec_",  # OpenAI, Anthropic, DashScope, DeepSeek; Stripe
    "gh[pousr]_|github_pat_|gl[a-z]{2,5}-",  # GitHub, GitLab
    "AIza|GOCSPX-|ya29[.]|AQ[.]Ab",  # Google
    "LTAI|STS[.]N|AKID|AKLT|ALTAK-|bce-v3/[A-Za-z0-9-]{1,64}/",  # Alibaba, Tencent, Volcengine, Baidu
    "A[KS]IA|ABIA|ACCA",  # Amazon
    "npm_|pypi-|dckr_pat_|rubygems_",
    "xox[abeprs]-|xapp-|hf_|ms-|gsk_|xai-|r8_|pplx-|nvapi-",
    "SG[.]|hv[sb][.]|dop_v1_|dapi(?=[0-9a-f])|shp(?:at|ca|pa|ss)_|sbp_|ATATT3|glsa_|sntry[su]_|lin_api_|ntn_",
    "AGE-SECRET-KEY-1",
)
_TOKEN = rf"(?<![A-Za-z0-9_])(?:{'|'.join(_PREFIXES)})[\w.-]{{7,}}[\w-]"
_NAMES = (
    "password|passwd|passphrase|pwd|secret|token|credentials?"
    "|(?:api|access|secret|account|private|signing|encryption)[_ -]?key(?:[_ -]?secret)?|密码|口令|密钥|令牌"
)
_IS = r"(?:=>|:=|[:=>]|\bis\b|是|为)"
_NAMED_SECRET = rf"(?i)(?:{_NAMES})[\"']?\s{{0,3}}{_IS}\s{{0,3}}[\"']?([^\s\"',;<，。；]{{3,}})"
_SEPARATOR = "[ ()./-]{0,3}"


def _is_basic(text: str) -> bool:
    """Whether base64 behind "Basic" holds a name and a password (RFC 7617), and is not a word in a sentence."""
    encoded = text.rsplit(maxsplit=1)[-1].rstrip("=")
    try:
        return ":" in base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return False


# In this order: a kind that may contain another comes first. Where a pattern has a group, only the group is masked.
_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("private-key", re.compile(_PEM), always),
    ("token", re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"), always),
    ("token", re.compile(_TOKEN), always),
    ("token", re.compile(r"(?i)\bbearer ([\w.~+/=-]{8,})"), always),
    ("secret", re.compile(r"(?i)\bbasic ([A-Za-z0-9+/]{4,}={0,2})"), _is_basic),
    ("secret", re.compile(r"(?<=\s)(?:-u|--user)[ =][\"']?[^\s:\"']{1,64}:([^\s\"']{1,128})"), always),
    ("secret", re.compile(_NAMED_SECRET), always),
    ("secret", re.compile(r"(?<=://)[^\s/:@]{1,100}:[^\s/@]{1,100}(?=@)"), always),
    ("email", re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"), always),
    *(
        (kind, re.compile(rf"(?<![0-9A-Za-z-]){pattern}(?![0-9A-Za-z-])"), is_one)
        for kind, pattern, is_one in ID_NUMBERS
    ),
    *(
        ("phone", re.compile(rf"(?<![0-9]){pattern}(?!\.?[0-9])"), always)
        for pattern in (
            # A group of four digits cannot be part of an IPv4 address, and two dots cannot be a fraction.
            r"(?:\(?\+?86\)?[ .-]?)?(?:\(1[3-9][0-9]\)|1[3-9][0-9])(?:[ -]?[0-9]{4}[ -]?|\.[0-9]{4}\.)[0-9]{4}",
            r"(?:\(0[0-9]{2,3}\)[ .-]?|0[0-9]{2,3}[.-])[0-9]{3,4}[ .-]?[0-9]{4}",
            r"[48]00[ .-]?[0-9]{3}[ .-]?[0-9]{4}",
            rf"\(?(?<![0-9+])(?:\+|00)[1-9][0-9]{{0,2}}(?:{_SEPARATOR}[0-9]){{6,12}}",
            r"\(?[2-9][0-9]{2}(?:\)[ .-]?|[-. ])[2-9][0-9]{2}[-. ][0-9]{4}",
            r"0[1-9](?:[ .-][0-9]{2}){4}",
            r"\(?0[1-9][0-9]{1,4}(?:\)[ ./-]?|[ /-])[0-9]{3,4}[ .-]?[0-9]{3,4}",
        )
    ),
)


def redact(text: str) -> str:
    """The text with every match replaced by its kind in brackets, such as ``[email]``."""
    for kind, pattern, is_one in _KINDS:
        text = _masked(text, kind, pattern, is_one)
    return text


def _masked(text: str, kind: str, pattern: re.Pattern[str], is_one: Callable[[str], bool]) -> str:
    plain = text.translate(_WIDTH)  # same length: positions agree
    parts, end = [], 0
    for match in pattern.finditer(plain):
        if is_one(match[0]):
            start, stop = match.span(pattern.groups)
            parts += [text[end:start], f"[{kind}]"]
            end = stop
    return "".join([*parts, text[end:]])
