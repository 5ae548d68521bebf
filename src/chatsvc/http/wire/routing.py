"""What a route asks of its caller is declared on its view, and a program with an undeclared route does not start.

Knows nothing about how a requirement is checked: that is ``http/wire/hooks.py`` with the gate.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

from flask import Flask
from werkzeug.routing import Rule

from chatsvc.guard.principal import Requirement

View = TypeVar("View", bound=Callable[..., Any])

_REQUIREMENT = "chatsvc_requirement"
_SCRAPERS = "chatsvc_open_to_scrapers"


def requires(requirement: Requirement, *, open_to_scrapers: bool = False) -> Callable[[View], View]:
    """Declare what a view asks for. ``open_to_scrapers``: an address on the scraper networks needs no token."""

    def declare(view: View) -> View:
        @functools.wraps(view)
        def declared(*args: Any, **kwargs: Any) -> Any:  # a view may be a bound method, which takes no attributes
            return view(*args, **kwargs)

        setattr(declared, _REQUIREMENT, requirement)
        setattr(declared, _SCRAPERS, open_to_scrapers)
        return cast("View", declared)

    return declare


def requirement_of(app: Flask, rule: Rule) -> Requirement | None:
    """What the view behind a rule declared; None means nothing was declared."""
    requirement: Requirement | None = getattr(app.view_functions[rule.endpoint], _REQUIREMENT, None)
    return requirement


def is_open_to_scrapers(app: Flask, rule: Rule) -> bool:
    """Whether the scraper networks may call it without a token."""
    return bool(getattr(app.view_functions[rule.endpoint], _SCRAPERS, False))


def routes_below(app: Flask, prefix: str) -> list[str]:
    """``POST /v1/chat/completions`` and so on, for a caller who looks for something else."""
    found = [
        f"{method} {template(rule)}"
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith(prefix)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    ]
    return sorted(found, key=lambda route: route.split(" ")[::-1])


def template(rule: Rule) -> str:
    """``/a/<path:b>`` as OpenAPI writes it: ``/a/{b}``."""
    return re.sub(r"<(?:[^<>:]*:)?([^<>:]+)>", r"{\1}", rule.rule)


def check_every_route(app: Flask) -> None:
    """Deny by default: refuse to start with a route that declares nothing.

    Raises:
        RuntimeError: names the routes.
    """
    undeclared = [str(rule) for rule in app.url_map.iter_rules() if requirement_of(app, rule) is None]
    if undeclared:
        raise RuntimeError(f"routes without a declared requirement: {', '.join(sorted(undeclared))}")
