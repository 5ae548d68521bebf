"""Every section of the configuration that names a peer, with its defaults: from the TOML file to the HTTP answer.

The peers are real. A default that only tests replace is a default that nobody has tried.
"""

from __future__ import annotations

import sys
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import redis as redis_client
from click.testing import CliRunner

from chatsvc.app import create_app, running_in
from chatsvc.cli.main import main
from chatsvc.errors import OperatorError
from chatsvc.settings.load import load
from tests.servers import DIRECTORY_PASSWORD, openid_provider

pytest.importorskip("ldap3", reason="the extra 'directory' is not installed")

LISTED = '[guard]\nallowed_networks = ["127.0.0.0/8"]\n'
PASSWORD = "ada's long password"


def written(folder, text):
    """Settings out of a file that says nothing but this and who may connect."""
    folder.mkdir(exist_ok=True)
    (folder / "chatsvc.toml").write_text(LISTED + text)
    return load({"CHATSVC_HOME": str(folder)})


@contextmanager
def application(folder, text):
    app = create_app(written(folder, text))
    with closing(running_in(app)) as running:
        yield app.test_client(), running


def me(client, answer):
    assert answer.status_code == 200, answer.json
    return client.get("/me", headers={"Authorization": f"Bearer {answer.json['access_token']}"}).json


def log_in_locally(client, running):
    running.guard.accounts.add("ada", PASSWORD, ["user"])
    return me(client, client.post("/login", json={"username": "ada", "password": PASSWORD}))


def test_ldap(tmp_path, slapd):
    text = f"""
[ldap]
url = "ldaps://localhost:{slapd.tls}"
ca_file = "{slapd.folder / "server.pem"}"
bind_dn = "cn=chatsvc,dc=example,dc=org"
bind_password = "the service's password"
user_base = "ou=people,dc=example,dc=org"
group_base = "ou=groups,dc=example,dc=org"
roles = {{ chatters = "user" }}
"""
    with application(tmp_path, text) as (client, running):
        found = me(client, client.post("/login", json={"username": "carol", "password": DIRECTORY_PASSWORD}))
        assert (found["principal"], found["roles"]) == ("carol", ["user"])
        assert running.guard.accounts.get("carol").source == "ldap"
        assert client.post("/login", json={"username": "carol", "password": "a wrong password"}).status_code == 401


def test_ldap_with_nothing_but_what_it_must_know(tmp_path, slapd):
    text = f'[ldap]\nurl = "ldap://localhost:{slapd.plain}"\nuser_base = "ou=people,dc=example,dc=org"\n'
    with application(tmp_path, text) as (client, _):
        # An anonymous search sees nothing in this directory: an answer, no outage.
        assert client.post("/login", json={"username": "carol", "password": DIRECTORY_PASSWORD}).status_code == 401


def test_oidc(tmp_path):
    carol = {"sub": "sub-carol", "preferred_username": "carol", "groups": ["chatters"]}
    with openid_provider(carol) as url:
        text = f"""
[oidc]
issuer = "{url}"
client_secret = "a client secret"
redirect_url = "http://localhost/oidc/callback"
roles = {{ chatters = "user" }}
"""
        with application(tmp_path, text) as (client, running):
            there = client.get("/oidc/login").headers["Location"]
            back = urlsplit(httpx.post(there, data={"sub": "sub-carol"}, timeout=10).headers["Location"])
            assert client.get(f"{back.path}?{back.query}").headers["Location"] == "/#oidc"
            found = me(client, client.post("/oidc/tokens"))
            assert (found["principal"], found["roles"]) == ("carol", ["user"])
            assert running.guard.accounts.get("carol").source == "oidc"


def test_postgresql(tmp_path, postgres):
    with application(tmp_path, f'[store]\nurl = "{postgres.url}"\n') as (client, running):
        assert log_in_locally(client, running)["principal"] == "ada"
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute("SELECT name FROM accounts").fetchall() == [("ada",)]


def test_redis(tmp_path, redis):
    with application(tmp_path, f'[store]\nredis_url = "{redis.url}"\n') as (client, running):
        found = log_in_locally(client, running)
        token = client.post("/login", json={"username": "ada", "password": PASSWORD}).json["access_token"]
        asked = client.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hi"}]},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert asked.status_code == 503, asked.json  # no engine; the rate has been counted before
    with redis_client.Redis.from_url(redis.url) as connection:
        assert any(found["account_id"] in key.decode() for key in connection.scan_iter())


EXTRAS = [
    ('[ldap]\nurl = "ldaps://localhost"\n', "ldap3", "ldap.url", "directory"),
    ('[oidc]\nissuer = "https://localhost"\n', "authlib", "oidc.issuer", "directory"),
    ('[store]\nurl = "postgresql://localhost/x"\n', "psycopg", "store.url", "postgres"),
    ('[store]\nredis_url = "redis://localhost"\n', "redis", "store.redis_url", "redis"),
    ('[audit]\nwitness_url = "postgresql://localhost/x"\n', "psycopg", "audit.witness_url", "postgres"),
]


@pytest.mark.parametrize(("text", "package", "key", "extra"), EXTRAS)
def test_a_package_that_is_not_installed_is_named_before_it_is_needed(tmp_path, monkeypatch, text, package, key, extra):
    settings = written(tmp_path, text)
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself takes for "is not there"
    remedy = f"pip install 'chatsvc[{extra}]'"
    with pytest.raises(OperatorError) as caught:
        create_app(settings)
    assert key in caught.value.message
    assert remedy in caught.value.message
    for arguments in (["config", "check"], ["doctor"], ["serve"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code in (1, 3), arguments
        assert remedy in result.output, arguments


def test_the_image_has_every_package_that_the_configuration_can_ask_for():
    """The image installs exactly what is in the lock."""
    root = Path(__file__).parents[2]
    assert "-r requirements.lock" in (root / "Dockerfile").read_text()
    names = {line.split("==")[0].lower() for line in (root / "requirements.lock").read_text().splitlines()}
    assert {package for _, package, *_ in EXTRAS} | {"joserfc", "requests"} <= names
