"""Renders chat templates as transformers does. A template is an untrusted program.

jinja2's sandbox denies access to Python's objects; it does not bound time or memory. So this module runs only in the
child process of ``template_process``, whose limits the kernel enforces. Knows nothing about tokens.

Source: transformers, ``utils/chat_template_utils.py`` (filters, globals, the ``generation`` block).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Self, SupportsIndex

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Raised(jinja2.TemplateError):
    """The template called ``raise_exception``; the text is the template's."""


class Overlong(Exception):
    """The template wrote more than the limit."""


class GuardedText(str):
    """Text in which the first character of each marker is replaced by a placeholder.

    A template may search it for a marker (``content.split('</think>')``). So its methods replace markers in their
    arguments in the same way first, and return guarded text.
    """

    __slots__ = ("_guard",)
    _guard: Callable[[str], str]

    def __new__(cls, text: str, guard: Callable[[str], str]) -> Self:
        """``text`` has its placeholders already."""
        made = super().__new__(cls, text)
        made._guard = guard
        return made

    def __str__(self) -> str:
        return self  # jinja2's filters call str() first

    def __contains__(self, wanted: object) -> bool:
        return isinstance(wanted, str) and super().__contains__(self._guarded(wanted))

    def __eq__(self, other: object) -> bool:
        return super().__eq__(self._guarded(other))

    def __ne__(self, other: object) -> bool:
        return super().__ne__(self._guarded(other))

    __hash__ = str.__hash__

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return GuardedText(super().__getitem__(key), self._guard)

    def _guarded(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._guarded(one) for one in value)
        return self._guard(value) if isinstance(value, str) and not isinstance(value, GuardedText) else value

    def _again(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._again(one) for one in value)
        return GuardedText(value, self._guard) if isinstance(value, str) else value


def _looking(name: str) -> Callable[..., Any]:
    plain = getattr(str, name)

    @functools.wraps(plain)
    def method(self: GuardedText, *arguments: Any) -> Any:
        return self._again(plain(self, *(self._guarded(one) for one in arguments)))

    return method


for _name in (
    *("split", "rsplit", "splitlines", "partition", "rpartition", "strip", "lstrip", "rstrip", "startswith"),
    *("endswith", "find", "rfind", "index", "rindex", "count", "replace", "removeprefix", "removesuffix"),
):
    setattr(GuardedText, _name, _looking(_name))


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}``: marks assistant text for training; rendered as is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's name and type)

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body in a scope of its own, like transformers' call block."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def rendered(source: str, variables: dict[str, Any], *, max_chars: int) -> str:
    """Render the template with the variables that transformers passes.

    Raises:
        Raised: the template called ``raise_exception``.
        Overlong: it wrote more than ``max_chars``.
        jinja2.TemplateSyntaxError: it is not valid Jinja.
        Exception: any other; the template is a program.
    """
    parts: list[str] = []
    num_chars = 0
    for part in _compiled(source).generate(variables):
        num_chars += len(part)
        if num_chars > max_chars:
            raise Overlong
        parts.append(part)
    return "".join(parts)


def constants(source: str) -> list[str]:
    """Every string constant of the template, whether it writes it or compares with it.

    Raises:
        jinja2.TemplateSyntaxError: it is not valid Jinja.
    """
    tree = _environment().parse(source)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    return texts + [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]


def guarded_values(value: Any, mark: str, guard: Callable[[str], str]) -> Any:
    """The same value, with every text that holds the mark as :class:`GuardedText`."""
    if isinstance(value, str):
        return GuardedText(value, guard) if mark in value else value
    if isinstance(value, dict):
        return {guarded_values(key, mark, guard): guarded_values(one, mark, guard) for key, one in value.items()}
    if isinstance(value, list):
        return [guarded_values(one, mark, guard) for one in value]
    return value


class MarkerFinder:
    """Finds markers in texts, and replaces their first characters by placeholders."""

    def __init__(self, markers: Iterable[str]) -> None:
        # The longest first, as tokenizers do. (?!) matches nothing.
        alternatives = "|".join(re.escape(one) for one in sorted(markers, key=len, reverse=True)) or "(?!)"
        self.any_marker = re.compile(alternatives)
        # Consumes one character at a time, so that a marker inside a marker is found too.
        self._first_of_marker = re.compile(f"(?={alternatives})(.)", re.DOTALL)

    def broken(self, text: str, mark: str) -> str:
        """The text with a placeholder for each marker's first character; unchanged without markers."""
        if self.any_marker.search(text) is None:
            return text
        return self._first_of_marker.sub(lambda found: f"{mark}:{ord(found[1])};", text)


def mended(text: str, mark: str) -> str:
    """The text with its placeholders replaced by the original characters; an empty placeholder by nothing."""
    return re.sub(f"{mark}:([0-9]*);", lambda found: chr(int(found[1])) if found[1] else "", text)


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    x: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  (transformers' signature: templates pass these by position too)
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:  # noqa: A002  (transformers' name)
    return datetime.now().astimezone().strftime(format)


def _raise_exception(message: Any) -> None:
    raise Raised(str(message))
