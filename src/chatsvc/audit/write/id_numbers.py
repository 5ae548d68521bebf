"""Numbers that identify a person or an account, and how their check digits are computed. Pure.

People write them in groups ("110105 19491231 002X"), so a space or a hyphen is allowed between groups. Every pattern
has bounded repeats only: the time to search a text grows with its length.

Mainland China (18 and 15 digits, passports, permits), Hong Kong, Taiwan, Macau, Singapore, Korea, Japan, India, the
United States, the United Kingdom, France, Spain, Italy, Brazil; bank cards and IBAN of all countries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date

_CHINA = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999
_VERHOEFF = (  # the dihedral group of order ten, and the permutation of a place
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_SEPARATORS = dict.fromkeys(map(ord, " -.()/"))
_PLACES = (
    "0123456789",
    "1576283094",
    "5803796142",
    "8916043527",
    "9453126870",
    "4286573901",
    "2793806415",
    "7046913258",
)


def always(_: str) -> bool:
    """Accept a number that has no check digit."""
    return True


def _bare(text: str) -> str:
    """Without the separators between groups, in upper case."""
    return text.translate(_SEPARATORS).upper()


def _digits(text: str) -> list[int]:
    return [int(each) for each in text if each.isdigit()]


def _weighted(digits: Iterable[int], weights: Iterable[int]) -> int:
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=True))


def _is_day(year: str, month: str, day: str) -> bool:
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return False
    return True


def is_id_card(text: str) -> bool:
    """An 18-digit identity number of China: a real day of birth and the right check character (GB 11643-1999)."""
    bare = _bare(text)
    total = _weighted(_digits(bare[:17]), _CHINA)
    return _is_day(bare[6:10], bare[10:12], bare[12:14]) and "10X98765432"[total % 11] == bare[17]


def is_old_id_card(text: str) -> bool:
    """The 15-digit form from before 1999: a province and a real day of birth."""
    bare = _bare(text)
    return 11 <= int(bare[:2]) <= 65 and _is_day(f"19{bare[6:8]}", bare[8:10], bare[10:12])


def is_hong_kong(text: str) -> bool:
    """One or two letters, six digits, and a check character in brackets or not."""
    bare = _bare(text)
    values = [36] * (9 - len(bare)) + [int(each, 36) for each in bare[:-1]]
    check = 10 if bare[-1] == "A" else int(bare[-1])
    return (_weighted(values, range(9, 1, -1)) + check) % 11 == 0


def is_taiwan(text: str) -> bool:
    """A letter for the place and nine digits."""
    place = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(text[0].upper()) + 10
    return _weighted([*divmod(place, 10), *_digits(text)], (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1)) % 10 == 0


def is_singapore(text: str) -> bool:
    """NRIC and FIN: S, T, F, G, M."""
    first, total = text[0].upper(), _weighted(_digits(text), (2, 7, 6, 5, 4, 3, 2))
    total += {"T": 4, "G": 4, "M": 3}.get(first, 0)
    letters = {"S": "JZIHGFEDCBA", "F": "XWUTRQPNMLK", "M": "XWUTRQPNJLK"}
    return letters[{"T": "S", "G": "F"}.get(first, first)][total % 11] == text[-1].upper()


def is_korean(text: str) -> bool:
    """A resident registration number: a day of birth and a digit of sex and century. (New ones have no check digit.)"""
    bare = _bare(text)
    century = "18" if bare[6] in "90" else "19" if bare[6] in "1256" else "20"
    return _is_day(f"{century}{bare[:2]}", bare[2:4], bare[4:6])


def is_american(text: str) -> bool:
    """A social security number: no part of it is all zeros, and some areas were never assigned."""
    area, group, serial = _bare(text)[:3], _bare(text)[3:5], _bare(text)[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_japanese(text: str) -> bool:
    """My Number: twelve digits."""
    digits = _digits(text)
    rest = _weighted(digits[:11], (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return digits[11] == (0 if rest <= 1 else 11 - rest)


def is_indian(text: str) -> bool:
    """Aadhaar: twelve digits, Verhoeff's check."""
    check = 0
    for place, digit in enumerate(reversed(_digits(text))):
        check = int(_VERHOEFF[check][int(_PLACES[place % 8][digit])])
    return check == 0


def is_french(text: str) -> bool:
    """NIR: thirteen digits and 97 less their remainder. Corsica's letters count as 19 and 18."""
    bare = _bare(text).replace("2A", "19").replace("2B", "18")
    return 97 - int(bare[:13]) % 97 == int(bare[13:])


def is_spanish(text: str) -> bool:
    """DNI and NIE: eight digits (or X, Y, Z and seven) and a letter."""
    bare = _bare(text)
    number = bare[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == bare[-1]


def is_brazilian(text: str) -> bool:
    """CPF: nine digits and two checks."""
    digits = _digits(text)
    first = _weighted(digits[:9], range(10, 1, -1)) * 10 % 11 % 10
    second = _weighted(digits[:10], range(11, 1, -1)) * 10 % 11 % 10
    return len(set(digits)) > 1 and digits[9:] == [first, second]


def is_bank_card(text: str) -> bool:
    """13 to 19 digits with the right Luhn digit (ISO/IEC 7812-1)."""
    digits = _digits(text)
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and sum(doubled) % 10 == 0 and any(digits)


def is_iban(text: str) -> bool:
    """ISO 13616: the rearranged number is 1 modulo 97."""
    bare = text.replace(" ", "").upper()
    return int("".join(str(int(each, 36)) for each in bare[4:] + bare[:4])) % 97 == 1


_FOURS = "(?<![0-9][ -]){first}[0-9]{{3}}[ -]?[0-9]{{4}}[ -]?[0-9]{{4}}(?![ -][0-9])"  # not the end of a bank card
_CHINA_FIRST = "[1-9](?:[ -]?[0-9])"
# Kind, pattern (between other than letters, digits and hyphens), and whether what fits is one; in this order.
ID_NUMBERS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("id-card", f"{_CHINA_FIRST}{{16}}[ -]?[0-9Xx]", is_id_card),
    ("iban", "[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?", is_iban),
    ("bank-card", "[0-9](?:[ -]?[0-9]){12,18}", is_bank_card),
    ("id-card", f"{_CHINA_FIRST}{{14}}", is_old_id_card),
    ("passport", "(?:[EGPSegps] ?[0-9]{8}|[Ee][A-Fa-f] ?[0-9]{7})", always),  # China's
    ("id-card", "[CHMchm] ?[0-9]{8}(?:[0-9]{2})?", always),  # permits of Hong Kong, Macau and Taiwan residents
    (
        "id-number",
        r"[A-Za-z]{1,2}(?: ?[0-9]{3} ?[0-9]{3} ?\([0-9Aa]\)|[0-9]{6}[0-9Aa])",
        is_hong_kong,
    ),
    ("id-number", r"[157][0-9]{3} ?[0-9]{3} ?\([0-9]\)", always),  # Macau's
    ("id-number", "[A-Za-z][ -]?[1289][0-9]{8}", is_taiwan),
    ("id-number", "[STFGMstfgm] ?[0-9]{7} ?[A-Za-z]", is_singapore),
    ("id-number", "[0-9]{6}(?: ?- ?| )[0-9]{7}", is_korean),
    ("id-number", _FOURS.format(first="[0-9]"), is_japanese),
    ("id-number", _FOURS.format(first="[2-9]"), is_indian),
    ("id-number", "(?:[0-9]{3}-[0-9]{2}-[0-9]{4}|[0-9]{3} [0-9]{2} [0-9]{4})", is_american),
    ("id-number", "[A-CEGHJ-PR-TW-Za-ceghj-pr-tw-z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-Da-d]", always),  # NINO
    (
        "id-number",
        "[12][ .]?[0-9]{2}[ .]?[0-9]{2}[ .]?(?:2[ABab]|[0-9]{2})(?:[ .]?[0-9]{3}){2}[ .]?[0-9]{2}",
        is_french,
    ),
    ("id-number", "(?:[0-9]{8}|[XYZxyz][ -]?[0-9]{7})[ -]?[A-Za-z]", is_spanish),
    (
        "id-number",  # Italy's
        "[A-Za-z]{3} ?[A-Za-z]{3} ?[0-9]{2}[A-EHLMPR-Ta-ehlmpr-t][0-9]{2} ?[A-Za-z][0-9]{3}[A-Za-z]",
        always,
    ),
    ("id-number", r"[0-9]{3}[. ][0-9]{3}[. ][0-9]{3}[- ][0-9]{2}", is_brazilian),
)
