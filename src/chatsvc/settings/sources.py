"""Reads raw configuration from the TOML file and environment variables, and parses single values.

The reading functions add each problem to a list instead of stopping at the first. Knows nothing about what a key
means; :mod:`chatsvc.settings.sections` has the keys and their types.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

Network = IPv4Network | IPv6Network
PREFIX = "CHATSVC_"
# Browsers omit a scheme's default port.
_ORIGIN = re.compile(
    r"(?!https:.*:443$|http:.*:80$)[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
)
_MAPPED = IPv6Network("::ffff:0:0/96")


def read_toml(named: str | None, home: Path, problems: list[str]) -> dict[str, Any]:
    """The file's content. A named file must exist; ``$CHATSVC_HOME/chatsvc.toml`` may be missing."""
    path = Path(named) if named else home / "chatsvc.toml"
    if not named and not path.exists():
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors begin a file with a BOM
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
        return {}
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"{path} is not TOML: {error}")
        return {}
    if content.pop("home", None) is not None:
        problems.append(f"{path}: home: set the environment variable CHATSVC_HOME instead")
    return content


def read_environment(
    env: Mapping[str, str], keys: Mapping[str, frozenset[str]], secrets: frozenset[str], problems: list[str]
) -> dict[str, str]:
    """The variables ``CHATSVC_SECTION__KEY``; an empty one counts as not set.

    For a secret, ``CHATSVC_SECTION__KEY_FILE`` names a file with the value.
    """
    named = {name.upper(): value for name, value in env.items() if name.upper().startswith(PREFIX) and value != ""}
    result: dict[str, str] = {}
    for name, value in sorted(named.items()):
        key = name.removesuffix("_FILE")
        if name.endswith("_FILE") and key in secrets:
            if key in named:
                problems.append(f"{key} and {name} are both set: set one of them")
            elif (secret := _read_secret(name, value, problems)) is not None:
                result[key] = secret
        elif problem := _name_problem(name, keys):
            problems.append(problem)
        elif "__" in name:
            result[name] = value
    return result


def _read_secret(name: str, path: str, problems: list[str]) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8-sig").rstrip("\r\n")
    except OSError as error:
        problems.append(f"{name}: {path}: {error.strerror}")
    except UnicodeDecodeError:
        problems.append(f"{name}: {path} is not UTF-8 text")
    return None


def _name_problem(name: str, keys: Mapping[str, frozenset[str]]) -> str | None:
    """The problem of a variable's name, or None. Without ``__`` it may belong to others, unless it resembles a key."""
    section, separator, key = name.removeprefix(PREFIX).lower().partition("__")
    if not separator:
        if section in keys:
            return f"{name}: set one key at a time, as {name}__KEY"
        owners = [owner for owner in keys if section in keys[owner]]
        return f"{name}: did you mean {PREFIX}{owners[0].upper()}__{section.upper()}?" if owners else None
    if section not in keys:
        return f"{name}: there is no section {section!r}{_guess(section, keys)}"
    if key not in keys[section]:
        return f"{name}: there is no key {section}.{key}{_guess(key, keys[section])}"
    return None


def _guess(word: str, known: Mapping[str, object] | frozenset[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "; config/chatsvc.toml lists all of them"


def sentence(location: tuple[int | str, ...], message: str, keys: Mapping[str, frozenset[str]]) -> str:
    """One line about an invalid value, named by its path in the file."""
    path = ".".join(str(part) for part in location)
    if message == "Extra inputs are not permitted":
        section, *rest = (str(part) for part in location)
        known: Mapping[str, object] | frozenset[str] = keys.get(section, frozenset()) if rest else keys
        return f"{path}: there is no such key{_guess((rest or [section])[0], known)}"
    return f"{path}: {message.removeprefix('Value error, ')}" if path else message.removeprefix("Value error, ")


def refuse_retired_runner(value: Any) -> Any:
    """Say what to do about a value of ``engine.runner`` that earlier versions took."""
    if value == "torch-int8":
        raise ValueError("torch-int8 was removed: it agreed with fp32 on 0.888 of all tokens only; set auto or torch")
    return value


def url_check(example: str, *schemes: str, needs_host: bool = True) -> Callable[[Any], Any]:
    """A check for pydantic: the value is a URL with one of the schemes. Messages do not repeat it: it may be secret."""

    def check(value: Any) -> Any:
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        try:
            parts = urlsplit(text)
            has_space = any(char.isspace() for char in text)  # urlsplit accepts spaces
            is_good = parts.scheme in schemes and (not needs_host or (bool(parts.hostname) and not has_space))
            _ = parts.port  # raises if it is not a number
        except ValueError:
            is_good = False
        if not is_good:
            raise ValueError(f"this is not a URL that can be used here: write it as {example}")
        return value

    return check


def parse_list(value: object) -> object:
    """A list, or its JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError('this is a list; in the environment it is JSON, such as ["a", "b"]') from None


def parse_origins(value: object) -> list[str]:
    """A list of web origins (RFC 6454) as browsers send them, or its JSON text; every wrong one is named at once."""
    value = parse_list(value)
    if not isinstance(value, list):
        raise ValueError('this is a list of origins, such as ["https://intranet.example.org"]')  # noqa: TRY004  (pydantic collects ValueError)
    wrong = [item for item in value if not (isinstance(item, str) and _ORIGIN.fullmatch(item))]
    if wrong:
        raise ValueError(
            f"{', '.join(map(repr, wrong))}: an origin is a scheme, a host and a port other than the scheme's own, in "
            "lower case and without a path, such as https://intranet.example.org or http://localhost:3000; "
            '"*" and "null" would admit every page, so name each origin'
        )
    return value


def parse_networks(value: object) -> list[Network]:
    """A list of CIDR networks, or its JSON text; every wrong one is named at once."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list):
        raise ValueError('this is a list of networks; in the environment it is JSON, such as ["10.0.0.0/8"]')  # noqa: TRY004  (pydantic collects ValueError)
    networks: list[Network] = []
    problems: list[str] = []
    for item in value:
        try:
            networks.append(_unmapped(item if isinstance(item, Network) else _network(item)))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return networks


def _network(item: object) -> Network:
    try:
        loose = ip_network(str(item), strict=False)
    except ValueError:
        raise ValueError(f'{item!r} is not a network: write an address or CIDR, such as "10.0.0.0/8"') from None
    try:
        return ip_network(str(item))
    except ValueError:
        raise ValueError(f'{item!r} has bits set to the right of its mask: write "{loose}"') from None


def _unmapped(network: Network) -> Network:
    """An IPv4-mapped IPv6 network as IPv4, because client addresses are compared in that form."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return IPv4Network((int(mapped or 0), network.prefixlen - 96))
    return network
