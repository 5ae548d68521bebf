"""Whatever a stranger sends takes time in proportion to its length: every pattern, and every parse before the token."""

from __future__ import annotations

import ast
import base64
import importlib
import inspect
import itertools
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

import chatsvc
from chatsvc import logs
from chatsvc.app import running_in
from chatsvc.audit.write import redact
from chatsvc.chat.prompt import PromptRenderer
from chatsvc.chat.stopping import StopMatcher
from chatsvc.chat.types import Message
from chatsvc.http.wire.schema import Body
from tests.house.growth import attacks, growth

pytestmark = pytest.mark.timeout(300)


# Patterns.


def patterns_in(value: Any) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from patterns_in(item)
    elif isinstance(value, dict):
        for item in [*value, *value.values()]:
            yield from patterns_in(item)


Search = Callable[[str], object]


def search_of(pattern: re.Pattern[str], methods: set[str]) -> Search:
    """What is done with a pattern: many hold to a whole text only, which is quicker than looking for it anywhere."""
    if methods == {"fullmatch"}:
        return pattern.fullmatch
    return pattern.match if methods == {"match"} else lambda text: sum(1 for _ in pattern.finditer(text))


def our_modules() -> Iterator[ModuleType]:
    for module in pkgutil.walk_packages(chatsvc.__path__, "chatsvc."):
        if module.name.endswith("__main__") or module.name in {"chatsvc.wsgi", "chatsvc.store.migrations.env"}:
            continue  # they act when imported
        with suppress(ImportError):  # an extra that is not installed
            yield importlib.import_module(module.name)


def patterns_of(module: ModuleType) -> Iterator[tuple[str, re.Pattern[str], Search]]:
    """Every pattern that the module holds or writes in a call, where it is, and how the module uses it."""
    source = inspect.getsource(module)
    for name, value in list(vars(module).items()):
        if name.startswith("__"):
            continue
        methods = set(re.findall(rf"\b{name}\.(\w+)\(", source))
        for pattern in patterns_in(value):
            if isinstance(pattern.pattern, str):
                yield f"{module.__name__}.{name}: {pattern.pattern}", pattern, search_of(pattern, methods)
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(ast.Name("re"), method), args=[ast.Constant(str(text)), *_]):
                if method != "compile":
                    pattern = re.compile(text)
                    yield f"{module.__name__}:{node.lineno}", pattern, search_of(pattern, {method})


def slow_attack(pattern: re.Pattern[str], search: Search) -> str | None:
    """The first attack whose search does not grow with its length."""
    for make in attacks(pattern):
        wrong = growth(search, text=make)
        if wrong:
            return f"{make(40)!r}…: {wrong}"
    return None


@pytest.mark.parametrize(
    "known",
    [
        r'"(?:[^"\\]|\\.)*"|[\[\]{}]',  # starts again at every quote of an unterminated string
        r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*",  # starts again at every hyphen
    ],
)
def test_a_pattern_that_is_known_to_be_slow_is_found(known: str) -> None:
    pattern = re.compile(known, re.DOTALL)
    assert slow_attack(pattern, search_of(pattern, {"sub"})) is not None


@pytest.mark.slow
def test_every_pattern_is_linear() -> None:
    found = [pattern for module in our_modules() for pattern in patterns_of(module)]
    assert len(found) > 30
    slow = {where: wrong for where, pattern, search in found if (wrong := slow_attack(pattern, search))}
    assert slow == {}


# Bodies and headers, through the whole application, without a token.


def escaped(text: str) -> Callable[[int], bytes]:
    return lambda size: b'{"username":"' + (text * size)[:size].encode()


def login(username: Callable[[int], str], password: str = "x") -> Callable[[int], bytes]:
    return lambda size: json.dumps({"username": username(size), "password": password}, ensure_ascii=False).encode()


BODIES: dict[str, Callable[[int], bytes]] = {
    "unterminated, escaped quotes": escaped('\\"'),
    "unterminated, quotes": escaped('"'),
    "unterminated, backslashes": escaped("\\"),
    "unterminated, \\u": escaped("\\ud83d"),
    "terminated escapes": lambda size: b'{"username":"' + b'\\"' * (size // 2) + b'","password":"x"}',
    "surrogates": lambda size: b'{"username":"' + b"\\ud83d" * (size // 6) + b'","password":"x"}',
    "combining marks": login(lambda size: "a" + "\u0315" * (size // 4) + "\u0316" * (size // 4)),
    "a password of combining marks": lambda size: login(lambda _: "n", "\u0315\u0316" * (size // 4))(size),
    "widths": login(lambda size: "\ufdfa" * (size // 3)),
    "letters": login(lambda size: "x" * size),
    "brackets": lambda size: b"[" * size,
    "objects": lambda size: b'{"a":' * (size // 5),
    "pairs of brackets": lambda size: b"[" + b"[]," * (size // 3) + b"0]",
    "a deep field": lambda size: b'{"x":' + b"[" * 30 + b"0," * (size // 2) + b"0" + b"]" * 30 + b"}",
    "many keys": lambda size: json.dumps({f"{number:06d}": 0 for number in range(size // 11)}).encode(),
    "one key twice": lambda size: b'{"' + b"k" * (size // 2) + b'":1,"' + b"k" * (size // 2) + b'":1}',
    "digits": lambda size: b'{"username":' + b"9" * size + b"}",
    "a fraction": lambda size: b'{"username":0.' + b"9" * size + b"}",
    "an exponent": lambda size: b'{"username":1e-' + b"9" * size + b"}",
    "white space": lambda size: b" " * size + b"{}",
    "line ends": lambda size: b'{"username":' + b"\n" * size,
}
HEADERS: dict[str, Callable[[int], dict[str, str]]] = {
    "dots": lambda size: {"Authorization": "Bearer " + "a." * (size // 2)},
    "tokens": lambda size: {"Authorization": "Bearer " + "eyJ-" * (size // 4)},
    "spaces": lambda size: {"Authorization": "Bearer" + " " * size + "x"},
    "nested header": lambda size: {"Authorization": f"Bearer {_part('[' * (size * 3 // 4))}.a.a"},
    "keys": lambda size: {"X-Api-Key": "csk_a_" * (size // 6)},
    "request id": lambda size: {"X-Request-Id": "a" * size},
    "forwarded": lambda size: {"X-Forwarded-For": "127.0.0.1," * (size // 10)},
    "host": lambda size: {"Host": "a" * size},
    "parameters": lambda size: {"Content-Type": "application/json" + ";a=b" * (size // 4)},
    "quoted parameters": lambda size: {"Content-Type": 'application/json;a="' + '\\"' * (size // 2)},
    "continued parameters": lambda size: {"Content-Type": "application/json" + ";a*0=b" * (size // 6)},
    "cookies": lambda size: {"Cookie": 'a="' + '\\"' * (size // 2)},
    "many cookies": lambda size: {"Cookie": "a=b;" * (size // 4)},
    "quoted agent": lambda size: {"User-Agent": '"' * size, "Accept": '"\\' * (size // 2)},
}
PATHS: dict[str, Callable[[int], str]] = {
    "segments": lambda size: "/conversations" + "/a" * (size // 2),
    "slashes": lambda size: "/" * size,
    "percent": lambda size: "/conversations/" + "%25" * (size // 3),
    "no UTF-8": lambda size: "/conversations/" + "%ff" * (size // 3),
    "tokens": lambda size: "/" + "eyJ-" * (size // 4),
    "arguments": lambda size: "/livez?" + "a&" * (size // 2),
    "a long number": lambda size: "/admin/accounts?limit=" + "9" * size,
}


def _part(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_every_body_of_a_stranger_is_read_in_linear_time(bare_client) -> None:
    def post(body: bytes) -> None:
        answer = bare_client.post("/login", data=body, content_type="application/json")
        assert 400 <= answer.status_code < 500, answer.get_data()[:200]

    # The largest is as large as a stranger's body may be.
    slow = {name: growth(post, lambda size: make(size - 64), small=16_384) for name, make in BODIES.items()}  # noqa: B023
    assert {name: wrong for name, wrong in slow.items() if wrong} == {}


def test_every_header_and_path_of_a_stranger_is_read_in_linear_time(make_app) -> None:
    # The largest is twice what the server in front takes of a header line, and four times of a path.
    client = make_app(with_model=False, CHATSVC_GUARD__TRUSTED_PROXIES='["127.0.0.8/32"]').test_client()

    def head(headers: dict[str, str]) -> None:
        for path, peer in itertools.product(("/me", "/login"), ("127.0.0.1", "127.0.0.8")):
            answer = client.post(path, data=b"{}", headers=headers, environ_overrides={"REMOTE_ADDR": peer})
            assert 400 <= answer.status_code < 500

    def ask(path: str) -> None:
        assert client.get(path).status_code in {200, 400, 401, 404}

    slow = {f"header, {name}": growth(head, make) for name, make in HEADERS.items()}
    slow |= {f"path, {name}": growth(ask, make) for name, make in PATHS.items()}
    assert {name: wrong for name, wrong in slow.items() if wrong} == {}


def test_a_stranger_may_send_no_more_than_a_login_needs(make_app) -> None:
    client = make_app(with_model=False, CHATSVC_SERVER__MAX_BODY_BYTES="1000000").test_client()
    assert client.post("/login", data=b" " * 70_000, content_type="application/json").status_code == 413


# What comes after the token, and what is made of it.


def nearly_the_stop_string(size: int) -> str:
    matcher = StopMatcher(["a" * size + "b", "ab" * size])
    return "".join(matcher.feed(piece) for piece in ["aaaa"] * (size // 4)) + matcher.flush()


def test_a_long_list_of_wrong_items_makes_few_errors() -> None:
    models = {
        value
        for module in our_modules()
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Body) and value.model_fields
    }
    assert len(models) > 15
    many = {}
    for model in models:
        for field, item in itertools.product(model.model_fields, (None, {}, [], 1.5, "\0")):
            try:
                model.model_validate({field: [item] * 5000})
            except ValidationError as error:
                many[f"{model.__name__}.{field}, {item!r}"] = error.error_count()
    assert {where: num for where, num in many.items() if num > 50} == {}


TEXTS: dict[str, Callable[[int], object]] = {
    "the operational log": lambda size: logs.redact("path", "eyJ-eyJ://a:" * (size // 12)),
    "a redacted record": lambda size: redact.redact("eyJ-csk_a@a.1 " * (size // 14)),
    "a stop string": nearly_the_stop_string,
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_looks_at_texts_is_linear(name: str) -> None:
    assert growth(TEXTS[name]) is None


def test_a_prompt_is_encoded_in_linear_time(app) -> None:
    running = running_in(app)
    renderer = PromptRenderer(running.engine.card(), running.templates)

    def wrong(text: str) -> str | None:
        return growth(lambda given: renderer.prompt_ids([Message("user", given)]), lambda size: (text * size)[:size])

    texts = ["a", "<", "<|im_", "<|im_start|>", "é", " ", "\n", "1", "\u0315\u0316"]
    assert {text: found for text in texts if (found := wrong(text))} == {}
