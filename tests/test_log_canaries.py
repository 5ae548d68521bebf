"""What libraries raise quotes what somebody sent; none of it is in the log, and every error's type and place is."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import logging
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import jinja2
import jwt
import msgspec
import pydantic
import pytest
import redis as redis_library
import requests
from argon2 import PasswordHasher
from authlib.integrations.requests_client import OAuth2Session
from itsdangerous import URLSafeTimedSerializer
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet
from ldap3.utils.dn import parse_dn
from sqlalchemy import text
from tokenizers import Tokenizer

from chatsvc import logs
from chatsvc.errors import OperatorError
from chatsvc.store.database import Database
from chatsvc.store.migrate import migrate
from chatsvc.store.tables import Account

CANARY = "canary-4d81-of-a-prompt"
# What the service and its extras stand on, and where each keeps its exceptions.
DEPENDENCIES = (
    "argon2.exceptions", "authlib.oauth2.rfc6749.errors", "cryptography.exceptions", "flask_jwt_extended.exceptions",
    "gunicorn.http.errors", "h11", "httpx", "itsdangerous", "jinja2.exceptions", "joserfc.errors", "json",
    "jwt.exceptions", "ldap3.core.exceptions", "msgspec", "psycopg.errors", "pydantic_core", "redis.exceptions",
    "requests.exceptions", "sqlalchemy.exc", "sqlalchemy.orm.exc", "sqlite3", "urllib3.exceptions",
    "werkzeug.exceptions", "werkzeug.routing.exceptions", "builtins",
)  # fmt: skip
NAMES_IN_CODE = (NameError, AttributeError, ImportError)


def logged(error: BaseException) -> str:
    """The line of an error that was not expected, as the service writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logger = logging.Logger("chatsvc.test")  # noqa: LOG001  (without a parent)
    logger.addHandler(handler)
    logger.error("unexpected error", exc_info=error)
    logger.warning("it failed: %s", error)
    logger.error(error)
    return stream.getvalue()


def assert_is_told_without_its_content(error: BaseException) -> None:
    line = logged(error)
    assert CANARY not in line, type(error)
    assert type(error).__name__ in json.loads(line.splitlines()[0])["traceback"]


def exceptions_of(name: str) -> Iterator[type[Exception]]:
    for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass):
        if issubclass(kind, Exception) and not issubclass(kind, NAMES_IN_CODE):
            yield kind


@pytest.mark.parametrize("name", DEPENDENCIES)
def test_no_kind_of_error_of_any_dependency_brings_its_words_into_the_log(name: str) -> None:
    kinds = set(exceptions_of(name))
    assert kinds
    for error in (made for kind in kinds for made in instances_of(kind)):
        try:
            raise error from ValueError(CANARY)  # noqa: TRY301
        except Exception as caught:  # noqa: BLE001
            assert_is_told_without_its_content(caught)


def instances_of(kind: type[Exception]) -> Iterator[Exception]:
    """The error with and without what its own constructor makes of its words; some can be made in one way only."""
    with suppress(Exception):
        bare = kind.__new__(kind)
        bare.args = (CANARY, {"statement": CANARY})
        yield bare
    with suppress(Exception):
        yield kind(CANARY)


class _Body(pydantic.BaseModel):
    number: int


def _refuse(url: str) -> None:
    requests.get(url, timeout=1)


def _account(name: str) -> Account:
    return Account(id=name, name=CANARY, password_hash="", roles="", created_at=0, password_changed_at=0)


REAL: dict[str, Callable[[], object]] = {
    "pydantic": lambda: _Body.model_validate({"number": CANARY}),
    "json": lambda: json.loads(f'{{"query": "{CANARY}'),
    "utf-8": lambda: str(CANARY.encode() + b"\xff", "utf-8"),
    "ascii": lambda: f"{CANARY}é".encode("ascii"),
    "int": lambda: int(CANARY),
    "key": lambda: {}[CANARY],
    "re": lambda: re.compile(f"({CANARY}"),
    "jinja2": lambda: jinja2.Environment().from_string(f"{{% {CANARY} %}}"),
    "jinja2's strict": lambda: jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(
        "{{ a['" + CANARY + "'].b }}"
    ).render(a={}),
    "msgspec": lambda: msgspec.json.decode(f'"{CANARY}"', type=int),
    "httpx, the address": lambda: httpx.get(f"http://127.0.0.1:1/{CANARY}", trust_env=False),
    "httpx, the status": lambda: httpx.Response(
        500, request=httpx.Request("GET", f"http://x/{CANARY}")
    ).raise_for_status(),
    "requests": lambda: _refuse(f"http://127.0.0.1:1/?code={CANARY}"),
    "jwt": lambda: jwt.decode(CANARY, "k" * 32, algorithms=["HS256"]),
    "joserfc": lambda: joserfc_jwt.decode(CANARY, KeySet([])),
    "authlib": lambda: OAuth2Session("x", state="s").fetch_token(
        "http://x/", authorization_response=f"http://x/?error=e&error_description={CANARY}&state=s"
    ),
    "itsdangerous": lambda: URLSafeTimedSerializer("k").loads(CANARY),
    "argon2": lambda: PasswordHasher().verify(CANARY, "x"),
    "ldap3": lambda: parse_dn(CANARY),
    "tokenizers": lambda: Tokenizer.from_str(CANARY),
    "sqlite3": lambda: sqlite3.connect(":memory:").execute(f'SELECT "{CANARY}"."x"'),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_what_a_library_really_raises_is_logged_without_content(name: str) -> None:
    with pytest.raises(Exception) as caught:
        REAL[name]()
    assert_is_told_without_its_content(caught.value)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path) -> Iterator[Database]:
    is_sqlite = request.param == "sqlite"
    made = Database(f"sqlite:///{tmp_path / 'x.db'}" if is_sqlite else request.getfixturevalue("postgres").url)
    if not is_sqlite:
        with made.session() as session:
            session.execute(text("DROP SCHEMA public CASCADE"))
            session.execute(text("CREATE SCHEMA public"))
    migrate(made)
    yield made
    made.close()


def test_what_a_database_refuses_is_logged_without_its_values(database: Database) -> None:
    def twice() -> None:
        with database.session() as session:
            session.add_all([_account("1"), _account("2")])

    def wrong(statement: str) -> Callable[[], None]:
        def run() -> None:
            with database.session() as session:
                session.execute(text(statement), {"value": CANARY})

        return run

    failures = [
        twice,
        wrong("INSERT INTO conversations VALUES (:value, 'nobody', :value, 0, 0)"),
        wrong("INSERT INTO accounts (id) VALUES (:value)"),
        wrong("SELECT no_such_column FROM accounts WHERE name = :value"),
        wrong("SELECT json(:value)" if database.is_sqlite else "SELECT CAST(:value AS integer)"),
    ]
    for fail in failures:
        with pytest.raises(Exception) as caught:
            fail()
        assert_is_told_without_its_content(caught.value)
        assert CANARY not in str(caught.value) or not database.is_sqlite  # hidden by SQLAlchemy already
    with pytest.raises(Exception) as caught:
        twice()
    assert ("IntegrityError: SQLITE_CONSTRAINT_UNIQUE" if database.is_sqlite else "23505") in logged(caught.value)


def test_what_redis_refuses_is_logged_without_its_values(redis) -> None:
    with redis_library.Redis.from_url(redis.url) as client, pytest.raises(redis_library.ResponseError) as caught:
        client.execute_command(CANARY)
    assert CANARY in str(caught.value)
    assert_is_told_without_its_content(caught.value)


def test_our_own_errors_say_what_they_say() -> None:
    line = logged(OperatorError("The key file is missing; make one."))
    assert "OperatorError: The key file is missing; make one." in line
    assert "No such file or directory: /nowhere/x" in logged(FileNotFoundError(2, "x", "/nowhere/x"))
