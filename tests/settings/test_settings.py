"""The configuration: what is read from where, and that every problem is told at once in words that help."""

from __future__ import annotations

import json
import tomllib
from ipaddress import ip_network
from pathlib import Path

import pytest

from chatsvc.errors import ConfigurationInvalid
from chatsvc.resources import resource_path
from chatsvc.settings.load import KEYS, Section, Settings, child_environment, environment_value, load
from chatsvc.store.database import Database
from chatsvc.store.migrate import migrate


def problems_of(**environ: str) -> list[str]:
    with pytest.raises(ConfigurationInvalid) as caught:
        load(environ)
    return caught.value.problems


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def with_file(home: Path, text: str) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    (home / "chatsvc.toml").write_text(text, encoding="utf-8")
    return {"CHATSVC_HOME": str(home)}


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "intranet.example.org", "https://intranet.example.org/", "https://Intranet.example.org", "https://a.example:443",
     "http://a.example:80", "https://*.example.org", "https://user@a.example", "https://b\u00fccher.example", "https://a.example:99x"],
)  # fmt: skip
def test_what_no_browser_sends_as_its_origin_is_refused(home: Path, origin: str) -> None:
    problems = problems_of(CHATSVC_HOME=str(home), CHATSVC_SERVER__CORS_ORIGINS=json.dumps([origin]))
    assert len(problems) == 1
    assert problems[0].startswith(f"server.cors_origins: {origin!r}: an origin is a scheme, a host")


def test_origins_are_taken_as_browsers_send_them(home: Path) -> None:
    origins = [
        "https://intranet.example.org",
        "http://localhost:3000",
        "http://[::1]:5173",
        "https://a.example:80",
        "tauri://localhost",
    ]
    assert load({"CHATSVC_HOME": str(home)}).server.cors_origins == []
    given = {"CHATSVC_HOME": str(home), "CHATSVC_SERVER__CORS_ORIGINS": json.dumps(origins)}
    assert load(given).server.cors_origins == origins


def test_without_anything_the_defaults_are_in_force_and_nobody_is_allowed(home: Path) -> None:
    settings = load({"CHATSVC_HOME": str(home)})
    assert settings.guard.allowed_networks == []
    assert settings.server.port == 8080
    assert settings.home == home


def test_home_is_var_below_the_working_directory_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({}).home == tmp_path / "var"


def test_everything_lies_below_home_unless_told_otherwise(home: Path) -> None:
    settings = load({"CHATSVC_HOME": str(home)})
    assert settings.engine_socket == home / "run" / "engine.sock"
    assert settings.models_directory == home / "models"
    assert settings.audit_directory == home / "audit"
    assert settings.keys_directory == home / "keys"
    assert settings.store_url == f"sqlite:///{home / 'chatsvc.db'}"


def test_the_environment_wins_over_the_file(home: Path) -> None:
    environ = with_file(home, "[server]\nport = 9001\nhost = '::1'\n")
    settings = load({**environ, "CHATSVC_SERVER__PORT": "9002"})
    assert (settings.server.host, settings.server.port) == ("::1", 9002)


def test_a_named_file_is_read_instead_of_the_one_at_home(home: Path, tmp_path: Path) -> None:
    environ = with_file(home, "[server]\nport = 9001\n")
    named = tmp_path / "other.toml"
    named.write_text("[server]\nport = 9003\n", encoding="utf-8")
    assert load({**environ, "CHATSVC_CONFIG": str(named)}).server.port == 9003


def test_a_named_file_that_is_missing_is_a_problem(home: Path) -> None:
    assert problems_of(CHATSVC_HOME=str(home), CHATSVC_CONFIG="/nowhere.toml") == [
        "/nowhere.toml: No such file or directory"
    ]


def test_a_file_that_is_not_toml_is_a_problem(home: Path) -> None:
    (problem,) = problems_of(**with_file(home, "[server\n"))
    assert "is not TOML" in problem


@pytest.mark.parametrize("issuer", ["https://id example.org", "https://id.example.org/a b", "https://id.example.org\n"])
def test_a_url_with_white_space_is_a_problem(home: Path, issuer: str) -> None:
    (problem,) = problems_of(CHATSVC_HOME=str(home), CHATSVC_OIDC__ISSUER=issuer)
    assert problem.startswith("oidc.issuer: this is not a URL")


def test_home_inside_the_file_is_a_problem(home: Path) -> None:
    (problem,) = problems_of(**with_file(home, 'home = "/elsewhere"\n'))
    assert "CHATSVC_HOME" in problem


def test_lists_come_from_the_environment_as_json(home: Path) -> None:
    settings = load({"CHATSVC_HOME": str(home), "CHATSVC_GUARD__ALLOWED_NETWORKS": '["10.0.0.0/8", "::1"]'})
    assert settings.guard.allowed_networks == [ip_network("10.0.0.0/8"), ip_network("::1")]


def test_a_mapped_network_is_kept_as_the_ipv4_network_it_means(home: Path) -> None:
    settings = load({"CHATSVC_HOME": str(home), "CHATSVC_GUARD__ALLOWED_NETWORKS": '["::ffff:10.0.0.0/104"]'})
    assert settings.guard.allowed_networks == [ip_network("10.0.0.0/8")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('["10.0.0.1/8"]', "'10.0.0.1/8' has bits set to the right of its mask: write \"10.0.0.0/8\""),
        ('["example.org"]', "'example.org' is not a network: write an address or CIDR, such as \"10.0.0.0/8\""),
        ("[5]", '5 is not a network: write an address or CIDR, such as "10.0.0.0/8"'),
        ("10.0.0.0/8", 'this is a list of networks; in the environment it is JSON, such as ["10.0.0.0/8"]'),
        ('{"a": 1}', 'this is a list of networks; in the environment it is JSON, such as ["10.0.0.0/8"]'),
    ],
)
def test_a_wrong_network_gives_one_clear_sentence(home: Path, value: str, expected: str) -> None:
    assert problems_of(CHATSVC_HOME=str(home), CHATSVC_GUARD__ALLOWED_NETWORKS=value) == [
        f"guard.allowed_networks: {expected}"
    ]


def test_every_wrong_network_is_named(home: Path) -> None:
    (problem,) = problems_of(CHATSVC_HOME=str(home), CHATSVC_GUARD__ALLOWED_NETWORKS='["a", "10.0.0.0/8", "b"]')
    assert "'a'" in problem
    assert "'b'" in problem


def test_all_problems_are_told_at_once(home: Path) -> None:
    environ = with_file(home, "[server]\nport = 70000\n[gaurd]\nx = 1\n[limits]\nmax_wating = 3\n")
    found = problems_of(**environ, CHATSVC_CHAT__DEADLINE_S="0", CHATSVC_SERVR__PORT="1", CHATSVC_STORE__URL_FILE="/no")
    assert len(found) == 6
    told = "\n".join(found)
    for expected in ("server.port", "did you mean 'guard'", "did you mean 'max_waiting'", "chat.deadline_s", "/no"):
        assert expected in told
    assert "CHATSVC_SERVR__PORT: there is no section 'servr'; did you mean 'server'?" in found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CHATSVC_GUARD__ALLOWED", "did you mean"),
        ("CHATSVC_GUARD__ZZZZ", "config/chatsvc.toml lists all of them"),
        ("CHATSVC_GUARD", "set one key at a time"),
        ("CHATSVC_PORT", "did you mean CHATSVC_SERVER__PORT?"),
    ],
)
def test_a_variable_with_a_wrong_name_is_a_problem(home: Path, name: str, expected: str) -> None:
    (problem,) = problems_of(**{"CHATSVC_HOME": str(home), name: "1"})
    assert expected in problem


def test_variables_of_others_and_empty_ones_are_left_alone(home: Path) -> None:
    settings = load({"CHATSVC_HOME": str(home), "CHATSVC_VECTORS": "/x", "PORT": "1", "CHATSVC_SERVER__PORT": ""})
    assert settings.server.port == 8080


def test_a_secret_comes_from_a_file_and_is_not_shown(home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql+psycopg://u:canary@/db\n", encoding="utf-8")
    settings = load({"CHATSVC_HOME": str(home), "CHATSVC_STORE__URL_FILE": str(secret)})
    assert settings.store_url == "postgresql+psycopg://u:canary@/db"
    assert "canary" not in repr(settings)


def test_a_secret_given_twice_is_a_problem(home: Path) -> None:
    (problem,) = problems_of(CHATSVC_HOME=str(home), CHATSVC_STORE__URL="sqlite:///a", CHATSVC_STORE__URL_FILE="/b")
    assert "both set" in problem


def test_a_secret_that_is_not_text_is_a_problem(home: Path, tmp_path: Path) -> None:
    (tmp_path / "url").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in problems_of(CHATSVC_HOME=str(home), CHATSVC_STORE__URL_FILE=str(tmp_path / "url"))[0]


def test_a_wrong_secret_is_not_repeated_in_the_problem(home: Path) -> None:
    told = problems_of(**with_file(home, '[store]\nurl = ["canary"]\n'))
    assert "canary" not in "".join(told)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TOKENS__ACCESS_LIFETIME_S", "90000", "tokens.refresh_idle_s must be more than"),
        ("TOKENS__REFRESH_ABSOLUTE_S", "700", "tokens.refresh_absolute_s must be at least"),
        ("CHAT__MAX_TOKENS_CAP", "100", "chat.max_tokens_cap must be at least"),
        ("SERVER__THREADS", "100", "server.threads must be 0 or at least 210: as many requests may wait at once"),
        ("SERVER__KEEP_ALIVE_S", "80", "server.keep_alive_s must be at most 60"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(home: Path, variable: str, value: str, expected: str) -> None:
    (problem,) = problems_of(**{"CHATSVC_HOME": str(home), f"CHATSVC_{variable}": value})
    assert problem.startswith(expected)


def test_a_runner_that_was_removed_is_refused_with_the_remedy(home: Path) -> None:
    (problem,) = problems_of(CHATSVC_HOME=str(home), CHATSVC_ENGINE__RUNNER="torch-int8")
    assert problem.startswith("engine.runner: torch-int8 was removed")
    assert problem.endswith("set auto or torch")


def test_threads_follow_what_may_run_and_wait(home: Path) -> None:
    assert load({"CHATSVC_HOME": str(home)}).server_threads == 96 + 16 + (2 + 64) + 24 + 8
    assert load({"CHATSVC_HOME": str(home), "CHATSVC_SERVER__THREADS": "500"}).server_threads == 500


def test_a_child_process_gets_the_environment_with_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9")
    assert child_environment({"X_Y": "1"}).items() >= {"PORT": "9", "X_Y": "1"}.items()
    assert environment_value("PORT") == "9"
    monkeypatch.setenv("PORT", "")
    assert environment_value("PORT") is None


def documented() -> dict[str, dict[str, object]]:
    return tomllib.loads(resource_path("config/chatsvc.toml").read_text(encoding="utf-8"))


def commented_keys(section: str) -> set[str]:
    text = resource_path("config/chatsvc.toml").read_text(encoding="utf-8")
    body = text.split(f"[{section}]\n", 1)[1].split("\n[", 1)[0]
    return {line[2:].split(" =")[0] for line in body.splitlines() if line.startswith("# ") and " = " in line}


@pytest.mark.parametrize("section", sorted(KEYS))
def test_the_documented_file_holds_every_key_with_its_default(section: str) -> None:
    default = Settings.model_fields[section].default
    assert isinstance(default, Section)
    values = documented()[section]
    for key in KEYS[section]:
        value = getattr(default, key)
        if value is None:
            assert key in commented_keys(section), f"{section}.{key} is missing from config/chatsvc.toml"
        else:
            assert values.pop(key) == value, f"{section}.{key} differs from config/chatsvc.toml"
    assert values == {}, f"config/chatsvc.toml has keys in [{section}] that do not exist"


def test_the_documented_file_has_no_section_that_does_not_exist_and_loads(home: Path) -> None:
    assert set(documented()) == set(KEYS)
    named = str(resource_path("config/chatsvc.toml"))
    from_file = load({"CHATSVC_HOME": str(home), "CHATSVC_CONFIG": named})
    assert from_file.model_dump() == load({"CHATSVC_HOME": str(home)}).model_dump()


def test_a_byte_order_mark_is_no_part_of_a_file(home: Path, tmp_path: Path) -> None:
    environ = with_file(home, "\ufeff[server]\nport = 9001\n")
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xef\xbb\xbfsqlite:///secret.db\r\n")
    settings = load({**environ, "CHATSVC_STORE__URL_FILE": str(secret)})
    assert settings.server.port == 9001
    assert settings.store_url == "sqlite:///secret.db"


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "a b", "a@b:c", "Büro"])
def test_a_home_of_any_name_holds_its_own_database(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    database = Database(load({"CHATSVC_HOME": str(home)}).store_url)
    migrate(database)
    database.close()
    assert (home / "chatsvc.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
