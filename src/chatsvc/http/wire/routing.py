"""What a view declares about itself: its route, what it requires of the caller, and what the OpenAPI document says.

The views of a resource are the methods of one frozen dataclass, whose fields are what they need::

    @route("GET", "/conversations")
    @requires(scope("chat"))
    @Operation(query=PageQuery, answer=Conversations)
    def list_own(self) -> Conversations: ...

A view's docstring is in the document; its first line is the summary. A program with a view that declares no requirement
does not start. Knows nothing about how a requirement is checked (``http/wire/hooks.py`` with the gate) or how the
document is made (``http/description/openapi.py``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from flask import Blueprint, Flask
from msgspec import Meta
from pydantic import BaseModel
from werkzeug.routing import Rule

from chatsvc.guard.principal import Requirement

View = TypeVar("View", bound=Callable[..., Any])

_ROUTES = "chatsvc_routes"
_REQUIREMENT = "chatsvc_requirement"
_SCRAPERS = "chatsvc_open_to_scrapers"
_OPERATION = "chatsvc_operation"


class Views(Protocol):
    """An object whose methods are views."""

    TAG: ClassVar[str]  # the section of the OpenAPI document


@dataclass(frozen=True, slots=True)
class Operation:
    """What the OpenAPI document says about a view besides its docstring; used as a decorator.

    Attributes:
        body, query: the models of the request.
        body_required: False where the body may be left out.
        answer: the type of the JSON of a successful answer.
        texts: successful answers of other media types, each with an example.
        status: of a successful answer.
        errors: statuses of errors that are not every route's.
        failures: types of answers, by status, of failures that are not in the common error shape.
        path: an example of each parameter in the path.
    """

    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    body_required: bool = True
    answer: Any = None
    texts: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    errors: Sequence[int] = ()
    failures: Mapping[int, Any] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, view: View) -> View:
        """Put it on a view."""
        setattr(view, _OPERATION, self)
        return view


def like(example: Any) -> Meta:
    """An example of a field in an answer; the examples of whole answers are put together from these."""
    return Meta(examples=[example])


def route(method: str, path: str, *, endpoint: str | None = None) -> Callable[[View], View]:
    """Declare a view's method and path; ``endpoint``: its name, if that is not the Python method's."""

    def declare(view: View) -> View:
        setattr(view, _ROUTES, [*getattr(view, _ROUTES, ()), (method, path, endpoint or view.__name__)])
        return view

    return declare


def requires(requirement: Requirement, *, open_to_scrapers: bool = False) -> Callable[[View], View]:
    """Declare what a view requires. ``open_to_scrapers``: an address on the scraper networks needs no token."""

    def declare(view: View) -> View:
        setattr(view, _REQUIREMENT, requirement)
        setattr(view, _SCRAPERS, open_to_scrapers)
        return view

    return declare


def blueprint(name: str, *resources: Views) -> Blueprint:
    """The routes that the methods of some objects declare."""
    routes = Blueprint(name, __name__)
    for views in resources:
        for attribute, function in vars(type(views)).items():
            for method, path, endpoint in getattr(function, _ROUTES, ()):
                routes.add_url_rule(path, endpoint, getattr(views, attribute), methods=[method])
    return routes


def requirement_of(app: Flask, rule: Rule) -> Requirement | None:
    """What the view behind a rule requires; None means nothing was declared."""
    requirement: Requirement | None = getattr(app.view_functions[rule.endpoint], _REQUIREMENT, None)
    return requirement


def operation_of(app: Flask, rule: Rule) -> tuple[Operation, str, str]:
    """What the document says about the view behind a rule; the docstring, and the section that it belongs to."""
    view: Any = app.view_functions[rule.endpoint]
    return getattr(view, _OPERATION), inspect.getdoc(view) or "", view.__self__.TAG


def is_open_to_scrapers(app: Flask, rule: Rule) -> bool:
    """Whether the scraper networks may call it without a token."""
    return bool(getattr(app.view_functions[rule.endpoint], _SCRAPERS, False))


def routes_below(app: Flask, prefix: str) -> list[str]:
    """``POST /v1/chat/completions`` and so on, for the message of a 404."""
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
    """Deny by default: refuse to start with a route that requires nothing.

    Raises:
        RuntimeError: names the routes.
    """
    undeclared = [str(rule) for rule in app.url_map.iter_rules() if requirement_of(app, rule) is None]
    if undeclared:
        raise RuntimeError(f"routes without a declared requirement: {', '.join(sorted(undeclared))}")
