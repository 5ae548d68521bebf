"""A person at the page: headless Chromium, driven over WebDriver's own HTTP interface, in front of the real service.

``CHATSVC_SCREENSHOTS=DIR`` keeps pictures of what was seen.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from chatsvc.settings.load import load
from tests.servers import free_port, openid_provider

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = pytest.mark.skipif(not (DRIVER and BROWSER), reason="chromium and chromium-driver are not installed")

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver section 12.1
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing is asked for beyond this machine
    "--window-size=1200,800",
]


class Browser:
    """The few commands of WebDriver that the tests need."""

    def __init__(self, driver: str, profile: Path, language: str) -> None:
        options = {"binary": BROWSER, "args": [*FLAGS, f"--user-data-dir={profile}", f"--lang={language}"]}
        options["prefs"] = {"intl.accept_languages": language}
        self._http = httpx.Client(base_url=driver, timeout=60)
        wanted = {
            "capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        }
        self._session = f"/session/{self._post('/session', wanted)['sessionId']}"

    def _post(self, path, body):
        answer = self._http.post(path, json=body).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def open(self, url):
        self._post(f"{self._session}/url", {"url": url})

    def run(self, script, *arguments):
        return self._post(f"{self._session}/execute/sync", {"script": f"return {script}", "args": list(arguments)})

    def find(self, selector):
        return self._post(f"{self._session}/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector):
        self._post(f"{self._session}/element/{self.find(selector)}/click", {})

    def type(self, selector, text):
        self._post(f"{self._session}/element/{self.find(selector)}/value", {"text": text})

    def text(self, selector):
        return self.run("[...document.querySelectorAll(arguments[0])].map(n => n.textContent)", selector)

    def is_shown(self, selector):
        return self.run("Boolean(document.querySelector(arguments[0])?.getClientRects().length)", selector)

    def resize(self, width, height):
        self._post(f"{self._session}/window/rect", {"width": width, "height": height})

    def accept_dialog(self, text=None):
        if text is not None:
            self._post(f"{self._session}/alert/text", {"text": text})
        self._post(f"{self._session}/alert/accept", {})

    def complaints(self):
        """What the console says, a refused policy included; a 401 that the page expects is none."""
        entries = self._post(f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if "status of 4" not in entry["message"]]

    def screenshot(self):
        """A PNG file, in base64."""
        return self._http.get(f"{self._session}/screenshot").json()["value"]

    def picture(self, name):
        directory = os.environ.get("CHATSVC_SCREENSHOTS")
        if directory:
            Path(directory, f"{name}.png").write_bytes(base64.b64decode(self.screenshot()))

    def quit(self):
        self._http.delete(self._session)
        self._http.close()


@pytest.fixture(scope="module")
def driver(wait_until):

    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def answers():
        try:
            return httpx.get(f"{url}/status").json()["value"]["ready"]
        except httpx.TransportError:
            return False

    wait_until(answers, what="chromedriver")
    yield url
    process.terminate()
    process.wait()


@pytest.fixture
def browse(driver, tmp_path):
    opened = []

    def start(language="en-US"):
        browser = Browser(driver, tmp_path / f"profile-{len(opened)}", language)
        opened.append(browser)
        return browser

    yield start
    for browser in opened:
        browser.quit()


def log_in(browser, server, name="alice", password="alice's long password"):
    browser.open(f"{server.url}/")
    browser.type("#username", name)
    browser.type("#password", password)
    browser.click("#login-form button[type=submit]")


def test_a_person_logs_in_asks_and_reads_the_answer(server, browse, wait_until):
    browser = browse()
    browser.open(f"{server.url}/")
    browser.picture("login")
    log_in(browser, server, password="wrong password, surely")
    wait_until(lambda: browser.text("#login-error") != [""])
    log_in(browser, server)
    wait_until(lambda: browser.is_shown("#input"))
    browser.type("#input", "What is the capital of France?\ue007")  # Enter
    wait_until(lambda: "".join(browser.text(".message.assistant .text")))
    wait_until(lambda: browser.is_shown("#send"))
    browser.type("#input", "And of Italy?")
    browser.click("#send")
    wait_until(lambda: browser.is_shown("#send") and len(browser.text(".message.assistant .text")) == 2)
    wait_until(lambda: "capital of France" in "".join(browser.text("#list")))
    browser.picture("chat")
    assert browser.text("#list li[aria-current] .open") == ["What is the capital of France?"]
    browser.click("#list .act:nth-of-type(2)")
    browser.accept_dialog("Capitals <b>of</b> Europe")
    wait_until(lambda: browser.text("#list .open")[:1] == ["Capitals <b>of</b> Europe"])
    browser.click("#list .act:nth-of-type(3)")
    browser.accept_dialog()
    wait_until(lambda: "Capitals" not in "".join(browser.text("#list")))
    assert browser.text(".message") == []
    browser.resize(420, 800)
    browser.picture("narrow")
    browser.click("#menu")
    assert browser.is_shown("#new")
    browser.click("#log-out")
    wait_until(lambda: browser.is_shown("#username"))
    assert browser.complaints() == []


def test_an_answer_can_be_stopped_and_is_kept(server, browse, wait_until):
    browser = browse("zh-CN")
    log_in(browser, server)
    wait_until(lambda: browser.is_shown("#input"))
    assert browser.text("#new") == ["新会话"]
    assert browser.run("document.documentElement.lang") == "zh-CN"
    browser.type("#input", "Write a very long story about a lighthouse and its keeper.\ue007")
    wait_until(lambda: len("".join(browser.text(".message.assistant .text"))) > 20)
    browser.picture("streaming-zh")
    browser.click("#stop")
    wait_until(lambda: browser.text("#status") == ["已停止。"])
    wait_until(lambda: "lighthouse" in "".join(browser.text("#list")))
    browser.click("header [data-action=language]")
    assert browser.text("#new") == ["New conversation"]
    assert browser.complaints() == []


def test_an_address_that_a_browser_is_refused_is_a_page(server, browse):
    browser = browse("zh-CN")
    browser.open(f"{server.url}/me")
    browser.picture("refused-zh")
    assert browser.text("h1") == ["无法显示此页面", "This page cannot be shown"]
    assert browser.run("getComputedStyle(document.querySelector('main')).maxWidth") == "544px"  # the policy allows it
    assert browser.complaints() == []
    browser.click("section[lang=zh-CN] a")
    assert browser.is_shown("#username")


CAROL = {"sub": "sub-carol", "preferred_username": "carol", "groups": ["chatters"]}
MALLORY = {"sub": "sub-mallory", "preferred_username": "alice", "groups": ["chatters"]}


@pytest.fixture
def single_sign_on(serve, tmp_path):
    """A service that trusts an OpenID provider, and the provider."""
    pytest.importorskip("authlib", reason="the extra 'directory' is not installed")
    port = free_port()
    with openid_provider(CAROL, MALLORY) as issuer:
        given = {
            "CHATSVC_SERVER__PORT": str(port),
            "CHATSVC_OIDC__ISSUER": issuer,
            "CHATSVC_OIDC__CLIENT_ID": "chatsvc-page",
            "CHATSVC_OIDC__CLIENT_SECRET": "a client secret",
            "CHATSVC_OIDC__REDIRECT_URL": f"http://127.0.0.1:{port}/oidc/callback",
            "CHATSVC_OIDC__ROLES": '{"chatters": "user"}',
        }
        with serve(tmp_path, **given) as server:
            yield server


def sign_on(browser, server, sub):
    """From our page to the provider's, and what a person does there."""
    browser.open(f"{server.url}/")
    browser.click("#sso")
    browser.type("input[name=sub]", sub)
    browser.click("form[method=post] button[type=submit]")


def test_a_person_comes_in_by_the_identity_provider_and_chats(single_sign_on, browse, wait_until):
    browser = browse()
    sign_on(browser, single_sign_on, "sub-carol")
    wait_until(lambda: browser.is_shown("#input"))
    assert browser.run("location.href") == f"{single_sign_on.url}/"  # nothing of the login is left in the address
    assert browser.run("document.cookie") == ""
    browser.type("#input", "What is the capital of France?\ue007")
    wait_until(lambda: "".join(browser.text(".message.assistant .text")))
    wait_until(lambda: browser.is_shown("#send"))
    browser.picture("single-sign-on")
    browser.click("#log-out")
    wait_until(lambda: browser.is_shown("#username"))
    ours = [complaint for complaint in browser.complaints() if single_sign_on.url in complaint]
    assert ours == []  # the provider's page asks for a style sheet from elsewhere
    # The cookie was good for one pair of tokens: who comes back to that address is not in.
    browser.open(f"{single_sign_on.url}/docs")
    browser.open(f"{single_sign_on.url}/#oidc")
    wait_until(lambda: browser.text("#login-error") != [""])
    assert not browser.is_shown("#input")
    listed = accounts_of(single_sign_on)
    assert (listed["carol"]["source"], listed["carol"]["roles"]) == ("oidc", ["user"])


def accounts_of(server):
    body = {"username": "admin", "password": "an admin's long password"}
    token = httpx.post(f"{server.url}/login", json=body, timeout=30).json()["access_token"]
    answer = httpx.get(f"{server.url}/admin/accounts", headers={"Authorization": f"Bearer {token}"}, timeout=30)
    return {account["name"]: account for account in answer.json()["accounts"]}


def test_a_name_at_the_identity_provider_does_not_open_a_local_account(single_sign_on, browse, wait_until):
    browser = browse()
    sign_on(browser, single_sign_on, "sub-mallory")
    wait_until(lambda: "identity provider did not log you in" in browser.run("document.body.textContent"))
    browser.open(f"{single_sign_on.url}/")
    assert browser.is_shown("#username")
    assert accounts_of(single_sign_on)["alice"]["source"] == "local"


def test_who_says_no_at_the_identity_provider_reads_so_at_the_login(single_sign_on, browse, wait_until):
    browser = browse()
    browser.open(f"{single_sign_on.url}/")
    browser.click("#sso")
    browser.click("button[value=deny]")
    wait_until(lambda: "cancelled or denied" in "".join(browser.text("#login-error")))
    assert browser.is_shown("#username")
    assert browser.run("location.href") == f"{single_sign_on.url}/"
    browser.open(f"{single_sign_on.url}/docs")
    browser.open(f"{single_sign_on.url}/#oidc-constructor")  # no such code: nothing is said
    wait_until(lambda: browser.is_shown("#username"))
    assert browser.text("#login-error") == [""]


def test_the_offline_page_of_the_api_shows_every_route_with_its_parts(server, browse, wait_until):
    browser = browse()
    browser.open(f"{server.url}/docs")
    wait_until(lambda: "/chat/stream" in "".join(browser.text("#operations code")))
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert set(document["paths"]) <= set(browser.text("#operations summary code"))
    browser.run("document.querySelectorAll('details')[0].open = true")
    browser.picture("docs")
    shown = browser.text("#operations details[open] .inside")[0]
    for part in (
        "conversation_id",
        "≥ 1",
        "Qwen1.5-0.5B-Chat",
        "curl -X POST",
        "What is the capital of France?",
        "429",
    ):
        assert part in shown, part
    listing = "[...document.querySelectorAll('details')].find(n => n.textContent.startsWith('GET/conversations '))"
    shown = browser.run(f"{listing}.textContent")
    for part in ("limit", "1 … 200", "has_more", "How many to skip."):
        assert part in shown, part
    assert set(document["components"]["schemas"]) <= set(browser.text(".object h3"))
    assert "Answers" in browser.text("#operations h3")
    browser.click("[data-action=language]")
    assert "响应" in browser.text("#operations h3")
    assert browser.run("document.documentElement.lang") == "zh-CN"
    browser.picture("docs-zh")
    assert browser.complaints() == []


def test_settings_of_the_server_are_the_fixtures(server):
    assert load({"CHATSVC_HOME": str(server.settings.home)}).home == server.settings.home
